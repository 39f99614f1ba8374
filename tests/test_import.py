"""Importing the library is cheap and brings none of the optional packages."""

import subprocess

OPTIONAL = ("medmnist", "matplotlib", "pandas", "sklearn", "torchvision")


def test_import_costs_at_most_a_third_of_a_second_more_than_monai(forked_python):
    code = """
import sys, time
# what every import after the first costs: the bytecode is there
sys.dont_write_bytecode = False
before = set(sys.modules)
# other tests run beside this one
start = time.process_time()
import monai_gmr
print(time.process_time() - start)
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""
    command, seconds = [forked_python, "-c", code], []
    for _ in range(5):
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        elapsed, modules = run.stdout.strip().splitlines()
        seconds.append(float(elapsed))
        assert not set(OPTIONAL) & set(modules.split())
        if seconds[-1] < 1 / 3:
            break
    assert min(seconds) < 1 / 3
