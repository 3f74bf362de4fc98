#include "dsv4/status.h"

namespace dsv4 {

std::string_view code_name(Code code) {
  switch (code) {
    case Code::kOk: return "ok";
    case Code::kInvalidArgument: return "invalid argument";
    case Code::kNotFound: return "not found";
    case Code::kCorrupt: return "corrupt";
    case Code::kUnsupported: return "unsupported";
    case Code::kResourceExhausted: return "resource exhausted";
    case Code::kIo: return "i/o error";
    case Code::kCancelled: return "cancelled";
    case Code::kInternal: return "internal error";
    case Code::kUnavailable: return "unavailable";
    case Code::kTooLong: return "too long";
  }
  return "unknown";
}

}  // namespace dsv4
