/// What PopART throws.
#ifndef POPART_ERROR_HPP
#define POPART_ERROR_HPP

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace popart {

/// The text is a format: `{}` stands for the next argument, `{{` and `}}` for braces. Here a format that has fewer or
/// more places than arguments is an error of its own.
class error : public std::runtime_error {
public:
  template <typename... Args> explicit error(const char *s, const Args &...args) : error(std::string(s), args...) {}
  template <typename... Args>
  explicit error(const std::string &s, const Args &...args)
      : std::runtime_error(format(s, std::vector<std::string>{text(args)...})) {}

private:
  template <typename T> static std::string text(const T &value) {
    std::ostringstream stream;
    stream << value;
    return stream.str();
  }
  static std::string format(const std::string &format, const std::vector<std::string> &arguments);
};

} // namespace popart

#endif
