// Folders of shards, lookups by name, and the writer that makes them.
#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <cstring>

#include "base/str.h"
#include "checkpoint/validate.h"
#include "checkpoint/writer.h"
#include "temp_dir.h"

namespace dsv4 {
namespace {

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}
#define EXPECT_HAS(text, part) EXPECT_TRUE(has(text, part)) << (text)

// Each tensor's bytes are all `fill`.
void write(const std::string& path, const std::vector<TensorSpec>& tensors, char fill) {
  auto writer = SafetensorsWriter::create(path, tensors);
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  for (const TensorSpec& t : writer->tensors()) {
    const std::string bytes(t.bytes(), fill);
    ASSERT_TRUE(writer->append(bytes.data(), bytes.size()).ok());
  }
  ASSERT_TRUE(writer->finish().ok());
}

std::string open_error(const std::string& path) {
  const auto checkpoint = Checkpoint::open(path);
  return checkpoint.ok() ? "opened" : checkpoint.status().message();
}

const TensorSpec kA{"a.weight", DType::kE4M3, {4, 3}}, kB{"a.scale", DType::kE8M0, {1, 1}},
    kC{"c", DType::kI64, {2}}, kD{"d", DType::kF32, {}};

constexpr char kShard1[] = "model-00001-of-00002.safetensors";
constexpr char kShard2[] = "model-00002-of-00002.safetensors";

void write_two_shards(const TempDir& dir) {
  write(dir.file(kShard1), {kA, kB}, 1);
  write(dir.file(kShard2), {kC, kD}, 2);
}

TEST(Checkpoint, SingleFile) {
  TempDir dir;
  write(dir.file("model.safetensors"), {kA, kB, kC, kD}, 7);
  for (const std::string& path : {dir.path(), dir.file("model.safetensors")}) {
    const auto checkpoint = Checkpoint::open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    std::string order;
    for (const TensorEntry& e : checkpoint->entries()) order += e.name + " ";
    EXPECT_EQ(order, "c d a.scale a.weight ");
    EXPECT_EQ(checkpoint->data_bytes(), 12u + 1 + 16 + 4);
    const auto tensor = checkpoint->tensor("a.weight", DType::kE4M3, {4, 3});
    ASSERT_TRUE(tensor.ok()) << tensor.status().message();
    EXPECT_EQ(static_cast<const char*>(tensor->data)[11], 7);
    drop_pages(*tensor);
    EXPECT_EQ(static_cast<const char*>(tensor->data)[0], 7);
  }
}

TEST(Checkpoint, ErrorsNameFileTensorExpectedAndFound) {
  TempDir dir;
  write(dir.file("model.safetensors"), {kA, {"e.w1.weight_packed", DType::kU8, {4}}}, 7);
  const auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok());
  const Status missing = checkpoint->tensor("b", DType::kF32, {2}).status();
  EXPECT_EQ(missing.code(), Code::kNotFound);
  EXPECT_HAS(missing.message(), cat(dir.path(), ": b: expected F32 [2], found no such tensor"));
  const std::string shape = checkpoint->tensor("a.weight", DType::kE4M3, {3, 4}).status().message();
  EXPECT_HAS(shape, cat(dir.file("model.safetensors"),
                        ": a.weight: expected F8_E4M3 [3, 4], found F8_E4M3 [4, 3]; "));
  const std::string dtype = checkpoint->tensor("a.weight", DType::kU8, {4, 3}).status().message();
  EXPECT_HAS(dtype, "expected U8 [4, 3], found F8_E4M3 [4, 3]");
  EXPECT_HAS(checkpoint->tensor("e.w1.weight", DType::kI8, {4}).status().message(),
             "compressed-tensors");
}

TEST(Checkpoint, ShardsByPattern) {
  TempDir dir;
  write_two_shards(dir);
  const auto checkpoint = Checkpoint::open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->shard_count(), 2u);
  EXPECT_EQ(checkpoint->find("d")->shard, 1u);
  EXPECT_EQ(checkpoint->shard_path(1), dir.file(kShard2));
  std::filesystem::remove(dir.file(kShard1));
  EXPECT_HAS(open_error(dir.path()), "found no shard 1");
}

TEST(Checkpoint, IndexIsChecked) {
  TempDir dir;
  write_two_shards(dir);
  const auto index = [&](const char* a, const char* d, const char* extra) {
    put_file(dir.file("model.safetensors.index.json"),
             cat(R"({"metadata":{"total_size":1,"x":[{}]},"weight_map":{"a.weight":")", a,
                 R"(","d":")", d, "\"", extra, "}}"));
  };
  index(kShard1, kShard2, "");
  EXPECT_EQ(open_error(dir.path()), "opened");
  index(kShard2, kShard2, "");
  EXPECT_HAS(open_error(dir.path()), "a.weight: expected in");
  index(kShard1, kShard2, cat(R"(,"zz":")", kShard1, "\"").c_str());
  EXPECT_HAS(open_error(dir.path()), "zz: expected in");
  index(kShard1, "model-00003-of-00003.safetensors", "");
  EXPECT_HAS(open_error(dir.path()), "names a missing shard");
  index("../outside.safetensors", kShard2, "");
  EXPECT_HAS(open_error(dir.path()), "expected a file name, found \"../outside.safetensors\"");
  for (const char* bad : {"", "[]", "{", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})",
                          R"({"weight_map":{"a":{"b":"c"}}})", R"({"weight_map":{}} x)"}) {
    put_file(dir.file("model.safetensors.index.json"), bad);
    EXPECT_HAS(open_error(dir.path()), "model.safetensors.index.json: expected") << bad;
  }
}

TEST(Checkpoint, SameTensorInTwoShards) {
  TempDir dir;
  write(dir.file(kShard1), {kA, kD}, 1);
  write(dir.file(kShard2), {kC, kD}, 2);
  EXPECT_HAS(open_error(dir.path()), "d: also in");
}

TEST(Checkpoint, NothingThere) {
  TempDir dir;
  EXPECT_HAS(open_error(dir.path()), "found neither");
  EXPECT_HAS(open_error(dir.file("none")), "no such file or folder");
}

TEST(Checkpoint, TruncatedShard) {
  TempDir dir;
  write_two_shards(dir);
  const std::string whole = get_file(dir.file(kShard2));
  put_file(dir.file(kShard2), whole.substr(0, whole.size() - 1));
  EXPECT_HAS(open_error(dir.path()), cat(dir.file(kShard2), ": truncated: expected ", whole.size()));
  SafetensorsOptions options;
  options.allow_header_only = true;
  EXPECT_FALSE(Checkpoint::open(dir.path(), options).ok());

  uint64_t header = 0;
  memcpy(&header, whole.data(), sizeof header);
  put_file(dir.file(kShard2), whole.substr(0, sizeof header + header));
  EXPECT_FALSE(Checkpoint::open(dir.path()).ok());
  const auto checkpoint = Checkpoint::open(dir.path(), options);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_HAS(checkpoint->tensor("d", DType::kF32, {}).status().message(), "copy of the header");
}

TEST(Writer, ReproducesThePublishedHeader) {
  // Shard 1 of the published Pro: 1,853,358,176 bytes, of which 129280 * 7168 * 2 are data.
  const TensorSpec embed{"embed.weight", DType::kBF16, {129280, 7168}};
  EXPECT_EQ(safetensors_header({embed}).size() + embed.bytes(), 1'853'358'176u);
}

TEST(Writer, PublishedOrder) {
  std::vector<TensorSpec> t = {{"b", DType::kI8, {1}},   {"a", DType::kI8, {1}},
                               {"c", DType::kE4M3, {1}}, {"d", DType::kE8M0, {1}},
                               {"e", DType::kBF16, {1}}, {"f", DType::kF32, {1}},
                               {"g", DType::kI64, {1}}};
  sort_as_published(t);
  std::string order;
  for (const TensorSpec& spec : t) order += spec.name;
  EXPECT_EQ(order, "gfedcab");
}

TEST(Writer, NothingAppearsUntilFinished) {
  TempDir dir;
  {
    auto writer = SafetensorsWriter::create(dir.file("x.safetensors"), {kA, kC});
    ASSERT_TRUE(writer.ok());
    const std::string bytes(20, 'x');
    EXPECT_TRUE(writer->append(bytes.data(), bytes.size()).ok());
    EXPECT_FALSE(std::filesystem::exists(dir.file("x.safetensors")));
    EXPECT_FALSE(writer->append(bytes.data(), bytes.size()).ok());  // more than planned
    EXPECT_FALSE(writer->finish().ok());                            // less than planned
  }
  EXPECT_EQ(dir.count(), 0u);
}

TEST(Writer, FullDisk) {
  auto writer = SafetensorsWriter::create("/dev/full", {{"a", DType::kU8, {4 << 20}}});
  ASSERT_TRUE(writer.ok()) << writer.status().message();
  const std::string bytes(4 << 20, 'x');
  const Status status = writer->append(bytes.data(), bytes.size());
  EXPECT_EQ(status.code(), Code::kResourceExhausted);
  EXPECT_HAS(status.message(), "/dev/full: ");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));  // neither renamed nor removed

  // A small file fails only when it is flushed.
  EXPECT_EQ(write_file("/dev/full", "x").code(), Code::kResourceExhausted);
}

TEST(Writer, FileSizeLimitLeavesNothing) {
  TempDir dir;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* const handler = signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 1 << 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto reserved =
      SafetensorsWriter::create(dir.file("x.safetensors"), {{"a", DType::kU8, {8 << 20}}});
  Status streamed;
  {
    auto file = OutputFile::create(dir.file("y"));
    ASSERT_TRUE(file.ok());
    const std::string bytes(4 << 20, 'x');
    streamed = file->write(bytes.data(), bytes.size());
  }
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_EQ(streamed.code(), Code::kResourceExhausted) << streamed.message();
  EXPECT_EQ(reserved.status().code(), Code::kResourceExhausted) << reserved.status().message();
  EXPECT_EQ(dir.count(), 0u);
}

TEST(Writer, UnwritableFolder) {
  TempDir dir;
  EXPECT_FALSE(SafetensorsWriter::create(dir.file("no/such/x.safetensors"), {kA}).ok());
}

TEST(CheckScales, FindsNan) {
  std::vector<uint8_t> bytes(6, 120);
  TensorRef ref{bytes.data(), DType::kE8M0, {2, 3}};
  EXPECT_TRUE(check_scales(ref, "s").ok());
  bytes[4] = 0x7f;
  EXPECT_TRUE(check_scales(ref, "s").ok());
  bytes[4] = 0xff;
  EXPECT_HAS(check_scales(ref, "x.scale").message(), "x.scale: expected finite F8_E8M0 scales, found NaN at [1, 1]");
  ref.dtype = DType::kE4M3;
  EXPECT_FALSE(check_scales(ref, "s").ok());
  bytes[4] = 0x7f;
  EXPECT_FALSE(check_scales(ref, "s").ok());
  bytes[4] = 0x7e;
  EXPECT_TRUE(check_scales(ref, "s").ok());

  for (const float value : {1.0f, NAN, INFINITY}) {
    const TensorRef scalar{&value, DType::kF32, {}};
    EXPECT_EQ(check_scales(scalar, "s").ok(), value == 1.0f);
  }
}

TEST(Checkpoint, GoldenFilesOpen) {
  for (const char* name : {"tiny-flash", "tiny-pro"}) {
    const std::string dir = cat("../shared/golden/", name);
    if (!std::filesystem::exists(dir)) GTEST_SKIP() << dir << " is not here";
    EXPECT_EQ(open_error(dir), "opened");
    EXPECT_EQ(open_error(dir + "/golden.safetensors"), "opened");
    // The writer would have written the same header.
    const auto checkpoint = Checkpoint::open(dir);
    ASSERT_TRUE(checkpoint.ok());
    std::vector<TensorSpec> specs;
    for (const TensorEntry& e : checkpoint->entries()) specs.push_back({e.name, e.dtype, e.shape});
    std::vector<TensorSpec> sorted = specs;
    sort_as_published(sorted);
    for (size_t i = 0; i < specs.size(); ++i) ASSERT_EQ(specs[i].name, sorted[i].name) << i;
    EXPECT_EQ(get_file(dir + "/model.safetensors").rfind(safetensors_header(specs), 0), 0u);
  }
}

}  // namespace
}  // namespace dsv4
