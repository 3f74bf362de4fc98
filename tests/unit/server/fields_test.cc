#include "server/fields.h"

#include <gtest/gtest.h>

#include "server/api_error.h"

namespace dsv4::server {
namespace {

struct Read {
  explicit Read(std::string_view json) : value(*py::loads(json)), fields(value, "a", problem) {}
  Problem problem;
  py::Value value;
  Fields fields;
};

TEST(Fields, ReadsWhatIsThere) {
  Read r(R"({"b": true, "i": -3, "n": 2, "x": 1.5, "s": "t", "l": ["u", "v"], "none": null})");
  EXPECT_EQ(r.fields.boolean("b"), true);
  EXPECT_EQ(r.fields.integer("i", -5, 5), -3);
  EXPECT_EQ(r.fields.number("n", 0, 2), 2.0);
  EXPECT_EQ(r.fields.number("x", 0, 2), 1.5);
  EXPECT_EQ(r.fields.strings("s", 2), std::vector<std::string>{"t"});
  EXPECT_EQ(r.fields.strings("l", 2), (std::vector<std::string>{"u", "v"}));
  EXPECT_EQ(r.fields.string("none"), std::nullopt);
  EXPECT_EQ(r.fields.string("absent"), std::nullopt);
  EXPECT_FALSE(r.problem.any());
}

TEST(Fields, KeepsTheFirstProblemWithItsPath) {
  Read r(R"({"x": "hot", "y": []})");
  (void)r.fields.number("x", 0, 2);
  (void)r.fields.boolean("y");
  ASSERT_TRUE(r.problem.any());
  EXPECT_EQ(r.problem.error().param, "a.x");
  EXPECT_EQ(r.problem.error().message, "a.x: expected a number from 0.0 to 2.0, found \"hot\"");
}

TEST(Fields, RefusesWhatDoesNotFit) {
  for (const char* json : {R"({"v": 3})", R"({"v": -1})", R"({"v": 1e999})", R"({"v": NaN})", R"({"v": true})",
                           R"({"v": 99999999999999999999999})", R"({"v": "1"})", R"({"v": {}})"}) {
    Read r(json);
    EXPECT_EQ(r.fields.number("v", 0, 2), std::nullopt) << json;
    EXPECT_TRUE(r.problem.any()) << json;
  }
  for (const char* json : {R"({"v": 1.0})", R"({"v": 9223372036854775808})", R"({"v": -1})", R"({"v": false})"}) {
    Read r(json);
    EXPECT_EQ(r.fields.integer("v", 0, INT64_MAX), std::nullopt) << json;
    EXPECT_TRUE(r.problem.any()) << json;
  }
  for (const char* json : {R"({"v": ""})", R"({"v": ["x", ""]})", R"({"v": ["x", 1]})", R"({"v": ["a", "b", "c"]})"}) {
    Read r(json);
    (void)r.fields.strings("v", 2);
    EXPECT_TRUE(r.problem.any()) << json;
  }
  Problem problem;
  const py::Value list = *py::loads("[]");
  const Fields fields(list, "", problem);
  EXPECT_EQ(problem.error().message, "the request body: expected an object, found an array");
  EXPECT_EQ(fields.get("x"), nullptr);
}

TEST(ApiError, HasTheShapeOfItsApi) {
  const ApiError error{.status = 429, .message = "full", .param = "p", .code = "c", .retry_after = 7};
  EXPECT_EQ(error_json(Dialect::kOpenAi, error),
            R"({"error": {"message": "full", "type": "rate_limit_error", "param": "p", "code": "c"}})");
  EXPECT_EQ(error_json(Dialect::kAnthropic, error),
            R"({"type": "error", "error": {"type": "rate_limit_error", "message": "p: full"}})");
  const HttpResponse response = error_response(Dialect::kOpenAi, error);
  ASSERT_EQ(response.headers.size(), 1u);
  EXPECT_EQ(response.headers[0], (std::pair<std::string, std::string>{"Retry-After", "7"}));
  // A server on its way out, as Anthropic says it.
  EXPECT_EQ(error_response(Dialect::kAnthropic, {.status = 503, .message = "x"}).status, 529);
}

}  // namespace
}  // namespace dsv4::server
