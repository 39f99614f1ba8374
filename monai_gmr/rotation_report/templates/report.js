"use strict";
// The slider, the choices, the worst cases and the tables. Content comes from the JSON next to it; text is set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const get = (id) => document.getElementById(id);

  all("[data-colour]").forEach((chip) => { chip.style.backgroundColor = chip.dataset.colour; });

  all("table.sortable").forEach((table) => {
    const heads = all("thead th", table);
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.children[column];
        return cell.dataset.number === undefined ? cell.textContent : Number(cell.dataset.number);
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        // cells without a number are last in both directions
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
        return up ? order : -order;
      };
      table.tBodies[0].append(...all("tbody tr", table).sort(compare));
    }));
  });

  if (!data.cases.length) return;
  const [caseBox, sweepBox, slider, play] = ["case", "sweep", "step", "play"].map(get);

  function draw(figure, image, over, words) {
    figure.hidden = !image || over === undefined || over === null;
    if (figure.hidden) return;
    const [below, above] = all("img", figure);
    below.src = image;
    above.hidden = over === "";
    if (over !== "") above.src = over;
    below.alt = over === "" ? words : "";
    above.alt = over === "" ? "" : words;
    below.onload = () => figure.firstElementChild.classList.toggle("small", below.naturalWidth < 160);
  }

  const className = (number) => data.classes[number] ? `${number} ${data.classes[number]}` : `class ${number}`;

  function listClasses(list, answer, truth) {
    const rows = (answer.probabilities || []).map((value, number) => {
      const row = document.createElement("li");
      const [name, meter, figure] = ["span", "meter", "span"].map((tag) => document.createElement(tag));
      name.textContent = className(number) + (number === truth ? " (true)" : "");
      name.className = number === truth ? "true" : "";
      meter.value = value;
      meter.setAttribute("aria-label", `probability of ${className(number)}`);
      figure.textContent = value.toFixed(3);
      figure.className = "figure";
      row.append(name, meter, figure);
      return row;
    });
    list.replaceChildren(...rows);
  }

  function show() {
    const [c, s, k] = [caseBox, sweepBox, slider].map((control) => Number(control.value));
    const sweep = data.sweeps[s];
    const step = sweep.steps[k];
    const shot = data.cases[c].sweeps[s][k];
    const place = `${data.cases[c].name}, ${step.text}`;
    const isMap = typeof shot.label === "string";
    get("value").value = step.label;
    slider.setAttribute("aria-valuetext", step.text);
    document.querySelector("label[for=step]").textContent = sweep.circle ? "Angle" : "View";
    get("truth").textContent = !isMap && typeof shot.label === "number" ? `label: ${className(shot.label)}` : step.text;
    all("figure[data-part]").forEach((figure) => {
      const { part, network } = figure.dataset;
      const answer = network === undefined ? shot : shot.networks[network];
      const over = part === "image" ? "" : typeof answer[part] === "string" ? answer[part] : null;
      const who = network === undefined ? "" : ` of ${data.networks[network]}`;
      draw(figure, shot.image, over, `${figure.lastElementChild.textContent}${who}: ${place}`);
    });
    const words = data.networks.map((name, n) => {
      const answer = shot.networks[n];
      const drawn = answer.prediction !== undefined;
      const guess = typeof answer.prediction === "number" ? `predicts ${className(answer.prediction)}; ` : "";
      const score = answer.score === "" ? "" : `${data.metric} ${answer.score}`;
      document.querySelector(`[data-score="${n}"]`).textContent = guess + score;
      document.querySelector(`[data-none="${n}"]`).hidden = drawn;
      listClasses(document.querySelector(`[data-classes="${n}"]`), answer, isMap ? null : shot.label);
      return `${name} ${answer.score || sweep.means[n][k] || "no score"}`;
    });
    get("status").textContent = `${step.text}, ${data.metric}: ${words.join("; ")}`;
    const curve = data.curves[s][c];
    get("curve").src = curve.address;
    get("curve").alt = `Curve of the scores, ${sweep.title}; at ${step.text}: ` +
      data.networks.map((name, n) => `${name} ${sweep.means[n][k] || "no score"}`).join("; ");
    get("mark").style.left = `${curve.x[k]}%`;
    all(".point").forEach((point, n) => {
      point.hidden = curve.y[n][k] === null;
      point.style.left = `${curve.x[k]}%`;
      point.style.top = `${curve.y[n][k]}%`;
    });
  }

  // another sweep keeps the angle if it has it
  function choose(c, s, k) {
    const label = data.sweeps[sweepBox.dataset.shown || 0].steps[slider.value].label;
    const steps = data.sweeps[s].steps;
    const same = data.sweeps[s].circle ? steps.findIndex((step) => step.label === label) : 0;
    caseBox.value = c;
    sweepBox.value = s;
    sweepBox.dataset.shown = s;
    slider.max = steps.length - 1;
    slider.value = k === undefined ? Math.max(same, 0) : k;
    show();
  }

  let timer = 0;
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    get("status").setAttribute("aria-live", "polite");
  }
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Pause";
    // a screen reader would never finish
    get("status").setAttribute("aria-live", "off");
    timer = setInterval(() => {
      slider.value = Number(slider.value) === Number(slider.max) ? 0 : Number(slider.value) + 1;
      show();
    }, 350);
  });
  slider.addEventListener("input", () => { stop(); show(); });
  caseBox.addEventListener("change", () => choose(caseBox.value, sweepBox.value, slider.value));
  sweepBox.addEventListener("change", () => { stop(); choose(caseBox.value, sweepBox.value); });
  all("[data-go]").forEach((button) => button.addEventListener("click", () => {
    stop();
    choose(...button.dataset.go.split(",").map(Number));
    get("viewer").scrollIntoView();
    slider.focus({ preventScroll: true });
  }));
  choose(0, 0, 0);
})();
