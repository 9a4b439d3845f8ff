#include "guard.hpp"

namespace host {

std::string &lastError() {
  static thread_local std::string text;
  return text;
}

} // namespace host

const char *host_last_error(void) { return host::lastError().c_str(); }
