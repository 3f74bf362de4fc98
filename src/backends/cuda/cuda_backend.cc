#include "backends/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "backends/cuda/ceilings.h"
#include "backends/cuda/copy.h"
#include "backends/cuda/core.h"
#include "backends/cuda/marks.h"
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
  t.hc_post_pre_norm = {hc_post_pre_norm, kName};
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
  t.attention_parts = {attention_parts, kName};
  t.ring_insert = {ring_insert, kName};
  t.attend = {attend, kName};
  t.router = {router, kName};
  t.moe = {moe, kName};
  t.sample = {sample, kName};
  return t;
}

Status copy(CudaStream& stream, void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return {};
  if (stream.recording) {
    stream.behind_copy = true;
    return copy_by_kernel(stream.handle, to, from, bytes);
  }
  return check(cudaMemcpyAsync(to, from, bytes, kind, stream.handle),
               kind == cudaMemcpyHostToDevice ? "upload" : "download");
}

struct CudaGraph : Graph {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  int64_t nodes = 0;

  ~CudaGraph() override {
    if (executable) cudaGraphExecDestroy(executable);
    if (graph) cudaGraphDestroy(graph);
  }
  int64_t launches() const override { return nodes; }
};

class CudaBackend : public Backend {
 public:
  CudaBackend(const cudaDeviceProp& device, cudaStream_t packing)
      : description_(cat("cuda: ", device.name, ", sm_", device.major, device.minor, ", ", device.multiProcessorCount,
                         " SMs, ", device.totalGlobalMem >> 30, " GiB")),
        multiprocessors_(device.multiProcessorCount),
        cache_bytes_(device.l2CacheSize) {
    packing_.handle = packing;
  }

  std::string_view name() const override { return kName; }
  std::string describe() const override { return description_; }
  const OpTable& ops() const override { return table_; }
  bool shares_host_memory() const override { return false; }

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
  Result<Buffer> allocate_staging(size_t bytes) override {
    void* p = nullptr;
    DSV4_TRY(check(cudaMallocHost(&p, bytes ? bytes : 1), "pinned host memory"));
    memset(p, 0, bytes);
    return Buffer(p, bytes, MemoryKind::kHost, [](void* data, size_t) { cudaFreeHost(data); });
  }

  bool can_record() const override { return true; }
  Result<std::unique_ptr<Graph>> record(Stream& s, const std::function<Status()>& body) override {
    auto& stream = static_cast<CudaStream&>(s);
    const cudaStream_t handle = stream.handle;
    DSV4_TRY(check(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal), "recording a step"));
    stream.recording = true;
    const Status status = body();
    stream.recording = stream.behind_copy = false;
    cudaGraph_t graph = nullptr;
    const Status ended = check(cudaStreamEndCapture(handle, &graph), "recording a step");
    auto recorded = std::make_unique<CudaGraph>();
    recorded->graph = graph;
    DSV4_TRY(status);
    DSV4_TRY(ended);
    size_t nodes = 0;
    DSV4_TRY(check(cudaGraphGetNodes(graph, nullptr, &nodes), "recording a step"));
    recorded->nodes = static_cast<int64_t>(nodes);
    DSV4_TRY(check(cudaGraphInstantiate(&recorded->executable, graph, 0), "recording a step"));
    // Else the first launch does it.
    DSV4_TRY(check(cudaGraphUpload(recorded->executable, handle), "recording a step"));
    return std::unique_ptr<Graph>(std::move(recorded));
  }
  Status launch(Stream& s, const Graph& graph) override {
    return check(cudaGraphLaunch(static_cast<const CudaGraph&>(graph).executable, static_cast<CudaStream&>(s).handle),
                 "replay of a step");
  }

  Status upload(Stream& s, void* dst, const void* src, size_t bytes) override {
    return copy(static_cast<CudaStream&>(s), dst, src, bytes, cudaMemcpyHostToDevice);
  }
  Status download(Stream& s, void* dst, const void* src, size_t bytes) override {
    return copy(static_cast<CudaStream&>(s), dst, src, bytes, cudaMemcpyDeviceToHost);
  }
  Status synchronize(Stream& s) override {
    return check(cudaStreamSynchronize(static_cast<CudaStream&>(s).handle), "a kernel failed");
  }

  Result<std::unique_ptr<Marks>> make_marks(int64_t n) override { return cuda::make_marks(n); }

  Result<Ceilings> measure_ceilings() override {
    return cuda::measure_ceilings(packing_.handle, multiprocessors_, cache_bytes_, memory().available);
  }

  Result<PackedWeight> pack(const PackRequest& request) override { return cuda::pack(packing_.handle, request); }
  Status unpack(const PackedWeight& packed, int64_t index, void* codes, void* scales) override {
    return cuda::unpack(packing_.handle, packed, index, codes, scales);
  }
  size_t packed_bytes(const PackRequest& request) const override { return cuda::packed_bytes(request); }

 private:
  std::string description_;
  int multiprocessors_;
  int64_t cache_bytes_;
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
  return std::unique_ptr<Backend>(std::make_unique<cuda::CudaBackend>(properties, packing));
}

}  // namespace dsv4
