// Any bytes as a tokenizer.json, and, through a tokenizer that is good, any bytes as a text.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "text/tokenizer.h"
#include "text/utf8.h"
#include "unit/text/small_tokenizer.h"

namespace {

void round_trip(const dsv4::Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text);
  if (!ids.ok()) return;
  const auto decoded = tokenizer.decode(*ids);
  if (!decoded.ok()) std::abort();
  dsv4::Detokenizer stream(tokenizer);
  std::string streamed;
  for (const int32_t id : *ids) streamed += *stream.push(id);
  if (streamed + stream.finish() != *decoded) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const dsv4::Tokenizer good =
      dsv4::Tokenizer::from_json(dsv4::py::dumps(dsv4::small_tokenizer()), "small.json").value();
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto ids = good.encode(bytes);
  if (!ids.ok()) std::abort();
  const auto decoded = good.decode(*ids);
  if (!decoded.ok() || *decoded != dsv4::utf8_lossy(bytes)) std::abort();

  const auto tokenizer = dsv4::Tokenizer::from_json(bytes, "fuzz.json");
  if (!tokenizer.ok()) {
    if (tokenizer.status().message().empty()) std::abort();
    return 0;
  }
  round_trip(*tokenizer, bytes);
  round_trip(*tokenizer, "hello <think> 123\n\xE4\xB8\x96");
  return 0;
}
