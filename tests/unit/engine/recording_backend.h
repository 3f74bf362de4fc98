// The reference backend as one that records: a graph is the ops and copies that `body` asked for, asked for
// again with the same arguments. So a replayed step reads what the batch's arrays hold then, as on a device.
// A replay that copied from, to or as much as another one did could not have been recorded: an error.
#pragma once

#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/backend.h"

namespace dsv4::testing {

class RecordingBackend : public Backend {
 public:
  explicit RecordingBackend(Backend& inner) : inner_(inner) { choose_kv_format(inner.kv_format()); }

  int64_t recorded = 0, launched = 0;
  int64_t copies = 0;  // not part of a graph

  std::string_view name() const override { return inner_.name(); }
  std::string describe() const override { return inner_.describe(); }
  const OpTable& ops() const override { return inner_.ops(); }
  MemoryInfo memory() const override { return inner_.memory(); }
  Result<Buffer> allocate(size_t bytes) override { return inner_.allocate(bytes); }
  Result<std::unique_ptr<Stream>> make_stream() override { return inner_.make_stream(); }
  Status upload(Stream& s, void* dst, const void* src, size_t bytes) override {
    note_copy(dst, src, bytes);
    return inner_.upload(s, dst, src, bytes);
  }
  Status download(Stream& s, void* dst, const void* src, size_t bytes) override {
    note_copy(dst, src, bytes);
    return inner_.download(s, dst, src, bytes);
  }
  Status synchronize(Stream& s) override { return inner_.synchronize(s); }
  Result<PackedWeight> pack(const PackRequest& r) override { return inner_.pack(r); }
  Status unpack(const PackedWeight& p, int64_t i, void* weight, void* scale) override {
    return inner_.unpack(p, i, weight, scale);
  }
  size_t packed_bytes(const PackRequest& r) const override { return inner_.packed_bytes(r); }

  bool can_record() const override { return true; }
  Result<std::unique_ptr<Graph>> record(Stream&, const std::function<Status()>& body) override {
    ++recorded;
    auto graph = std::make_unique<Body>();
    graph->body = body;
    return std::unique_ptr<Graph>(std::move(graph));
  }
  Status launch(Stream&, const Graph& graph) override {
    ++launched;
    const Body& recording = static_cast<const Body&>(graph);
    std::vector<Copy> copied;
    copied_ = &copied;
    const Status status = recording.body();
    copied_ = nullptr;
    DSV4_TRY(status);
    if (recording.copies.empty()) recording.copies = copied;
    if (recording.copies != copied) return Status(Code::kInternal, "a replay copies something else");
    return {};
  }

 private:
  using Copy = std::tuple<const void*, const void*, size_t>;
  struct Body : Graph {
    std::function<Status()> body;
    mutable std::vector<Copy> copies;  // of the first launch
    int64_t launches() const override { return 1; }
  };

  void note_copy(const void* to, const void* from, size_t bytes) {
    if (copied_) copied_->emplace_back(to, from, bytes);
    else ++copies;
  }

  Backend& inner_;
  std::vector<Copy>* copied_ = nullptr;  // by the running launch
};

}  // namespace dsv4::testing
