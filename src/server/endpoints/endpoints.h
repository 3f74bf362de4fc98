// Every endpoint: one function, in a file of its own. Called on the connection's I/O thread; answers
// the exchange now or later.
#pragma once

#include <memory>

#include "server/app.h"
#include "server/http.h"

namespace dsv4::server {

using Endpoint = void (*)(App& app, const std::shared_ptr<Exchange>& exchange);

void health(App& app, const std::shared_ptr<Exchange>& exchange);
void metrics(App& app, const std::shared_ptr<Exchange>& exchange);
void page(App& app, const std::shared_ptr<Exchange>& exchange);
void models(App& app, const std::shared_ptr<Exchange>& exchange);
void chat_completions(App& app, const std::shared_ptr<Exchange>& exchange);
void completions(App& app, const std::shared_ptr<Exchange>& exchange);
void responses(App& app, const std::shared_ptr<Exchange>& exchange);
void messages(App& app, const std::shared_ptr<Exchange>& exchange);
void count_tokens(App& app, const std::shared_ptr<Exchange>& exchange);
void tokenize(App& app, const std::shared_ptr<Exchange>& exchange);
void detokenize(App& app, const std::shared_ptr<Exchange>& exchange);

}  // namespace dsv4::server
