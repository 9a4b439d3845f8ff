/// For type checks without a checkout of poprithms: PopART's operators return it, and ours never name it.
#ifndef CHECK_POPRITHMS_PROPOSAL_HPP
#define CHECK_POPRITHMS_PROPOSAL_HPP

namespace poprithms {
namespace memory {
namespace inplace {

class Proposal {};

} // namespace inplace
} // namespace memory
} // namespace poprithms

#endif
