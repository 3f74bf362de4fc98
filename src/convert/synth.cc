#include "convert/synth.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <unordered_map>

#include "base/str.h"
#include "checkpoint/writer.h"
#include "convert/byte_tokenizer.h"
#include "convert/output_dir.h"
#include "convert/random_tensor.h"
#include "model/layer_plan.h"
#include "model/tensor_table.h"

namespace dsv4 {
namespace {

constexpr uint64_t kPieceBytes = 4u << 20;
constexpr uint64_t kBatchBytes = 64u << 20;

// A run of elements of one tensor, drawn by one thread.
struct Piece {
  const RandomTensor* tensor;
  uint64_t begin, count;  // elements
  uint64_t at, bytes;     // in its batch
};
struct Batch {
  std::vector<Piece> pieces;
  uint64_t bytes = 0;
};

struct Shard {
  std::vector<TensorSpec> specs;
  std::unordered_map<std::string, RandomTensor> random;  // by tensor name
};

std::vector<Batch> make_batches(const std::vector<TensorSpec>& specs, const Shard& shard) {
  std::vector<Batch> batches(1);
  for (const TensorSpec& spec : specs) {
    const RandomTensor* random = &shard.random.at(spec.name);
    const uint64_t size = dtype_size(spec.dtype), elements = spec.bytes() / size;
    const uint64_t step = kPieceBytes / size;
    for (uint64_t begin = 0; begin < elements; begin += step) {
      const uint64_t count = std::min(step, elements - begin);
      if (batches.back().bytes + count * size > kBatchBytes) batches.emplace_back();
      Batch& batch = batches.back();
      batch.pieces.push_back({random, begin, count, batch.bytes, count * size});
      batch.bytes += count * size;
    }
  }
  return batches;
}

// Threads that draw one batch while the caller writes the one before.
class Drawing {
 public:
  Drawing(const Batch& batch, const NormalTable& normal, int threads, std::vector<uint8_t>& out)
      : batch_(batch), normal_(normal), out_(out) {
    out_.resize(batch.bytes);
    for (int i = 0; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  Drawing(const Drawing&) = delete;
  Drawing& operator=(const Drawing&) = delete;

 private:
  void work() {
    for (size_t i; (i = next_.fetch_add(1)) < batch_.pieces.size();) {
      const Piece& piece = batch_.pieces[i];
      fill_random(*piece.tensor, normal_, piece.begin, piece.count, out_.data() + piece.at);
    }
  }

  const Batch& batch_;
  const NormalTable& normal_;
  std::vector<uint8_t>& out_;
  std::atomic<size_t> next_{0};
  std::vector<std::jthread> workers_;  // last: joined before the rest goes
};

class Synthesizer {
 public:
  Synthesizer(const ModelConfig& config, const SynthOptions& options, const ProgressSink& progress)
      : config_(config), options_(options), progress_(progress) {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    threads_ = std::clamp(options.threads > 0 ? options.threads : cores, 1, 64);
  }

  Status run(const std::string& dir) {
    DSV4_ASSIGN(std::string tokenizer, tokenizer_json());
    DSV4_ASSIGN(OutputDir out, OutputDir::create(dir));
    plan();
    const auto count = static_cast<uint32_t>(shards_.size());
    for (uint32_t i = 0; i < count; ++i) {
      const std::string path = out.add(shard_name(i, count));
      DSV4_TRY(options_.header_only ? write_header(path, shards_[i]) : write_shard(path, shards_[i]));
    }
    if (count > 1) {
      std::vector<std::vector<TensorSpec>> specs;
      for (Shard& shard : shards_) specs.push_back(std::move(shard.specs));
      DSV4_TRY(out.write("model.safetensors.index.json", shard_index_json(specs)));
    }
    DSV4_TRY(out.write("tokenizer.json", tokenizer));
    DSV4_TRY(out.write("generation_config.json",
                       cat("{\n  \"_from_model_config\": true,\n  \"bos_token_id\": ",
                           config_.bos_token_id, ",\n  \"do_sample\": true,\n  \"eos_token_id\": ",
                           config_.eos_token_id,
                           ",\n  \"temperature\": 1.0,\n  \"top_p\": 1.0\n}\n")));
    DSV4_TRY(out.write("config.json", to_json(config_)));
    out.keep();
    return {};
  }

 private:
  Result<std::string> tokenizer_json() const {
    if (options_.tokenizer_path.empty()) return byte_tokenizer_json(config_.vocab_size);
    std::ifstream file(options_.tokenizer_path, std::ios::binary);
    if (!file) {
      return Status(Code::kNotFound,
                    cat(options_.tokenizer_path, ": cannot be read; --tokenizer wants a tokenizer.json"));
    }
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }

  void plan() {
    const TensorTable table(config_, make_plan(config_));
    shards_.resize(options_.single_file ? 1 : table.shard_count());
    for (const TensorInfo& info : table.rows()) {
      Shard& shard = shards_[options_.single_file ? 0 : info.shard];
      const std::vector<TensorSpec> stored = stored_tensors(info, info.format);
      for (size_t i = 0; i < stored.size(); ++i) {
        shard.random.emplace(stored[i].name,
                             plan_random(info, stored[i], i, config_, options_.seed));
        shard.specs.push_back(stored[i]);
        total_ += stored[i].bytes();
      }
    }
  }

  Status write_header(const std::string& path, Shard& shard) {
    sort_as_published(shard.specs);
    return write_file(path, safetensors_header(shard.specs));
  }

  Status write_shard(const std::string& path, const Shard& shard) {
    DSV4_ASSIGN(SafetensorsWriter writer, SafetensorsWriter::create(path, shard.specs));
    const std::vector<Batch> batches = make_batches(writer.tensors(), shard);
    std::vector<uint8_t> drawn, ready;
    for (size_t i = 0; i <= batches.size(); ++i) {
      std::swap(drawn, ready);
      Status status;
      {
        const Batch none;
        const Drawing drawing(i < batches.size() ? batches[i] : none, normal_, threads_, drawn);
        if (i > 0) status = writer.append(ready.data(), ready.size());
      }
      DSV4_TRY(status);
      done_ += i > 0 ? ready.size() : 0;
      if (progress_) {
        progress_({"writing", static_cast<int64_t>(done_), static_cast<int64_t>(total_), "bytes"});
      }
    }
    return writer.finish();
  }

  const ModelConfig& config_;
  const SynthOptions& options_;
  const ProgressSink& progress_;
  const NormalTable normal_;
  std::vector<Shard> shards_;
  int threads_ = 1;
  uint64_t total_ = 0, done_ = 0;
};

}  // namespace

Result<ModelConfig> cut_config(ModelConfig config, const ConfigCut& cut) {
  if (cut.layers < 0 || cut.layers > config.num_hidden_layers) {
    return Status(Code::kInvalidArgument, cat("--layers: expected 1 to ", config.num_hidden_layers,
                                              ", found ", cut.layers));
  }
  if (cut.layers > 0) {
    const auto first = config.compress_ratios.begin();
    config.compress_ratios.erase(first + static_cast<std::ptrdiff_t>(cut.layers),
                                 first + static_cast<std::ptrdiff_t>(config.num_hidden_layers));
    config.num_hidden_layers = cut.layers;
    config.num_hash_layers = std::min(config.num_hash_layers, cut.layers);
  }
  if (cut.experts != 0) {
    config.n_routed_experts = cut.experts;
    config.num_experts_per_tok = std::min(config.num_experts_per_tok, cut.experts);
  }
  if (cut.vocab != 0) config.vocab_size = cut.vocab;
  DSV4_TRY(validate(config, "config"));
  return config;
}

Status write_synthetic(const ModelConfig& config, const SynthOptions& options,
                       const std::string& dir, const ProgressSink& progress) {
  try {
    return Synthesizer(config, options, progress).run(dir);
  } catch (const std::exception& e) {  // out of memory, no thread
    return Status(Code::kResourceExhausted, cat(dir, ": ", e.what()));
  }
}

}  // namespace dsv4
