#include "backends/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <cstdlib>

#include "backends/cuda/core.h"
#include "backends/cuda/ops.h"
#include "backends/cuda/pack.h"
#include "base/str.h"

namespace dsv4 {
namespace cuda {

Status check(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return {};
  const Code code = error == cudaErrorMemoryAllocation ? Code::kResourceExhausted : Code::kInternal;
  return Status(code, cat("cuda: ", what, ": ", cudaGetErrorString(error),
                          code == Code::kResourceExhausted ? "; use a smaller context or batch" : ""));
}

CudaStream::~CudaStream() {
  if (handle) cudaStreamDestroy(handle);
}

namespace {

constexpr std::string_view kName = "cuda";

OpTable make_table() {
  OpTable t;
  fill_fallbacks(t);
  t.embed = {embed, kName};
  t.hc_pre = {hc_pre, kName};
  t.hc_pre_norm = {hc_pre_norm, kName};
  t.hc_post = {hc_post, kName};
  t.hc_head = {hc_head, kName};
  t.stream_add = {stream_add, kName};
  t.rms_norm = {rms_norm, kName};
  t.linear = {linear, kName};
  t.linear_stack = {linear_stack, kName};
  t.grouped_linear = {grouped_linear, kName};
  t.rope = {rope, kName};
  t.qkv = {qkv, kName};
  t.compress = {compress, kName};
  t.index_select = {index_select, kName};
  t.attention = {attention, kName};
  t.ring_insert = {ring_insert, kName};
  t.router = {router, kName};
  t.moe = {moe, kName};
  return t;
}

class CudaBackend : public Backend {
 public:
  CudaBackend(std::string description, cudaStream_t packing) : description_(std::move(description)) {
    packing_.handle = packing;
  }

  std::string_view name() const override { return kName; }
  std::string describe() const override { return description_; }
  const OpTable& ops() const override { return table_; }
  KvFormat kv_format() const override { return KvFormat::kBf16; }

  MemoryInfo memory() const override {
    size_t available = 0, total = 0;
    if (cudaMemGetInfo(&available, &total) != cudaSuccess) return {};
    return {.total = total, .available = available};
  }

  Result<Buffer> allocate(size_t bytes) override { return allocate_device(bytes, true); }
  Result<std::unique_ptr<Stream>> make_stream() override {
    auto s = std::make_unique<CudaStream>();
    DSV4_TRY(check(cudaStreamCreateWithFlags(&s->handle, cudaStreamNonBlocking), "new stream"));
    return std::unique_ptr<Stream>(std::move(s));
  }
  Status upload(Stream& s, void* dst, const void* src, size_t bytes) override {
    if (bytes == 0) return {};
    return check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyHostToDevice, static_cast<CudaStream&>(s).handle), "upload");
  }
  Status download(Stream& s, void* dst, const void* src, size_t bytes) override {
    if (bytes == 0) return {};
    return check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, static_cast<CudaStream&>(s).handle), "download");
  }
  Status synchronize(Stream& s) override {
    return check(cudaStreamSynchronize(static_cast<CudaStream&>(s).handle), "a kernel failed");
  }

  Result<PackedWeight> pack(const PackRequest& request) override { return cuda::pack(packing_.handle, request); }
  Status unpack(const PackedWeight& packed, int64_t index, void* codes, void* scales) override {
    return cuda::unpack(packing_.handle, packed, index, codes, scales);
  }
  size_t packed_bytes(const PackRequest& request) const override { return cuda::packed_bytes(request); }

 private:
  std::string description_;
  OpTable table_ = make_table();
  CudaStream packing_;
};

Result<int> chosen_device(const CudaOptions& options, int count) {
  int device = options.device;
  if (const char* text = std::getenv("DSV4_CUDA_DEVICE"); device < 0 && text) {
    char* end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 0) {
      return Status(Code::kInvalidArgument, cat("DSV4_CUDA_DEVICE is \"", text, "\": expected a device number from 0"));
    }
    device = static_cast<int>(value);
  }
  if (device < 0) device = 0;
  if (device < count) return device;
  return Status(Code::kInvalidArgument, cat("CUDA device ", device, ": this machine has ", count,
                                            count == 1 ? " device" : " devices", ", numbered from 0"));
}

}  // namespace
}  // namespace cuda

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    cudaGetLastError();
    return Status(Code::kUnsupported, cat("no usable NVIDIA GPU: ", error != cudaSuccess ? cudaGetErrorString(error)
                                                                                         : "the driver reports none"));
  }
  DSV4_ASSIGN(const int device, cuda::chosen_device(options, count));
  cudaDeviceProp properties{};
  DSV4_TRY(cuda::check(cudaGetDeviceProperties(&properties, device), "device properties"));
  if (properties.major != 9) {
    return Status(Code::kUnsupported, cat(properties.name, " has compute capability ", properties.major, ".",
                                          properties.minor, ": this build runs on 9.0 (Hopper: H100, H200)"));
  }
  DSV4_TRY(cuda::check(cudaSetDevice(device), "choice of device"));
  cudaStream_t packing = nullptr;
  DSV4_TRY(cuda::check(cudaStreamCreateWithFlags(&packing, cudaStreamNonBlocking), "new stream"));
  std::string description = cat("cuda: ", properties.name, ", sm_", properties.major, properties.minor, ", ",
                                properties.multiProcessorCount, " SMs, ", properties.totalGlobalMem >> 30, " GiB");
  return std::unique_ptr<Backend>(std::make_unique<cuda::CudaBackend>(std::move(description), packing));
}

}  // namespace dsv4
