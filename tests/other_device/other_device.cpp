// Device "other" of tests/other_device.py: memory of the host, which no operation of the CPU may take. Each operation runs on the CPU on
// the same memory, or on copies, and fails where it is given tensors of both devices, as on a GPU.

#include <cstdlib>
#include <new>

#include <ATen/Functions.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

using at::IntArrayRef;
using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr auto other = c10::DeviceType::PrivateUse1;

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* start = nullptr;
    if (bytes > 0 && posix_memalign(&start, 64, bytes) != 0) throw std::bad_alloc();
    return {start, start, &std::free, c10::Device(other, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(other, &memory)

// one device with one stream, which has always done what it was given
struct Guard final : c10::impl::NoOpDeviceGuardImpl<other> {
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return {other, 0}; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, getDevice()); }
  c10::Stream getNewStream(c10::Device, int = 0) const override { return getStream(getDevice()); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(getDevice()); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
};
[[maybe_unused]] const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  return true;
}();

bool is_other(const Tensor& x) { return x.defined() && x.device().type() == other; }

// the same memory as a tensor of the CPU
Tensor on_host(const Tensor& x) {
  if (!is_other(x)) return x;
  auto options = x.options().device(at::kCPU);
  return x.numel() == 0 ? at::empty_strided(x.sizes(), x.strides(), options)
                        : at::from_blob(x.data_ptr(), x.sizes(), x.strides(), options);
}

Tensor empty(IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef sizes, IntArrayRef strides, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const Tensor& resize_(const Tensor& x, IntArrayRef sizes, std::optional<at::MemoryFormat>) {
  size_t numbers = x.storage_offset();
  numbers += c10::multiply_integers(sizes);
  auto* storage = x.storage().unsafeGetStorageImpl();
  if (size_t bytes = numbers * x.element_size(); storage->nbytes() < bytes) {
    auto more = memory.allocate(bytes);
    if (storage->nbytes() > 0) std::memcpy(more.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(more));
    storage->set_nbytes(bytes);
  }
  x.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return x;
}

Tensor& set_storage(Tensor& x, at::Storage storage) {
  return x.set_(storage, 0, {static_cast<int64_t>(storage.nbytes()) / x.element_size()}, {1});
}

at::Scalar number_of(const Tensor& x) { return on_host(x).item(); }

Tensor as_strided(const Tensor& x, IntArrayRef sizes, IntArrayRef strides, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(x, sizes, strides, offset);
}

void check_alike(const char* name, at::ArrayRef<Tensor> tensors) {
  for (const Tensor& each : tensors) TORCH_CHECK(!each.defined() || is_other(each), name, " was given tensors of two devices");
}

Tensor convolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, IntArrayRef stride, IntArrayRef padding,
                   IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups) {
  Tensor shift = bias.value_or(Tensor());
  check_alike("convolution", {x, weight, shift});
  return at::convolution(on_host(x), on_host(weight), on_host(shift), stride, padding, dilation, transposed, output_padding, groups)
      .to(x.device());
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight, IntArrayRef stride,
                                                        IntArrayRef padding, IntArrayRef dilation, bool transposed,
                                                        IntArrayRef output_padding, int64_t groups, std::array<bool, 3> needed) {
  check_alike("convolution_backward", {gradient, x, weight});
  int64_t channels = gradient.size(1);
  auto [by_x, by_weight, by_bias] = at::convolution_backward(on_host(gradient), on_host(x), on_host(weight), IntArrayRef(channels), stride,
                                                             padding, dilation, transposed, output_padding, groups, needed);
  for (Tensor* each : {&by_x, &by_weight, &by_bias})
    if (each->defined()) *each = each->to(x.device());
  return {by_x, by_weight, by_bias};
}

// all other operations, by copies; as on a GPU, numbers may be of the CPU, and indices
void on_copies(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  bool here = false, there = false;
  auto look = [&](const at::IValue& value) {
    if (!value.isTensor() || !value.toTensor().defined()) return;
    here |= is_other(value.toTensor());
    there |= !is_other(value.toTensor()) && value.toTensor().dim() > 0;
  };
  for (const at::IValue& value : torch::jit::last(*stack, schema.arguments().size())) {
    look(value);
    if (value.isList())
      for (const at::IValue& each : value.toListRef()) look(each);
  }
  bool takes_indices = schema.name() == "aten::index" || schema.name().find("index_put_") != std::string::npos;
  TORCH_CHECK(!here || !there || takes_indices, schema.name(), " was given tensors of two devices");
  at::native::cpu_fallback(operation, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_copies>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize_);
  m.impl("_local_scalar_dense", number_of);
  m.impl("as_strided", as_strided);
  m.impl("view", at::native::view);
  m.impl("unfold", at::native::unfold);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  using namespace at;
  KERNEL_PRIVATEUSEONE(convolution, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv1d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv2d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(conv3d, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(exp, fp32)
  KERNEL_PRIVATEUSEONE(log, fp32)
}

}  // namespace
