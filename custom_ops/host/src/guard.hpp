/// The border to other languages: no exception crosses it.
#ifndef HOST_GUARD_HPP
#define HOST_GUARD_HPP

#include <exception>
#include <string>

#define HOST_VISIBLE extern "C" __attribute__((visibility("default")))

namespace host {

/// What the last call that failed said.
std::string &lastError();

/// Run a function; 0, or 1 and its error's text in `lastError`.
template <typename Function> int guarded(Function function) {
  try {
    function();
    return 0;
  } catch (const std::exception &error) {
    lastError() = error.what();
  } catch (...) {
    lastError() = "an error that is none of the standard library's";
  }
  return 1;
}

} // namespace host

/// What the last call that failed said.
HOST_VISIBLE const char *host_last_error(void);

#endif
