/// What a graph is made for.
#ifndef POPLAR_TARGET_HPP
#define POPLAR_TARGET_HPP

namespace poplar {

class Target {
public:
  /// One IPU of so many tiles. Host only: Poplar takes targets from devices.
  explicit Target(unsigned tiles) : tiles(tiles) {}
  unsigned getNumTiles() const { return tiles; }
  unsigned getTilesPerIPU() const { return tiles; }

private:
  unsigned tiles;
};

} // namespace poplar

#endif
