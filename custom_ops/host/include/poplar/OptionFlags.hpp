/// Options by name, as texts; who takes them refuses names that it does not know.
#ifndef POPLAR_OPTIONFLAGS_HPP
#define POPLAR_OPTIONFLAGS_HPP

#include <initializer_list>
#include <map>
#include <string>
#include <utility>

namespace poplar {

class OptionFlags {
public:
  using OptionFlag = std::pair<const std::string, std::string>;
  using iterator = std::map<std::string, std::string>::const_iterator;

  OptionFlags() = default;
  OptionFlags(std::initializer_list<OptionFlag> &&initial) : options(initial) {}
  void set(std::string option, std::string value) { options[std::move(option)] = std::move(value); }
  iterator begin() const { return options.begin(); }
  iterator end() const { return options.end(); }

private:
  std::map<std::string, std::string> options;
};

} // namespace poplar

#endif
