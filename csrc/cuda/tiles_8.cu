#include "cuda/tiles_instance.h"

namespace l0sign::cuda {

INSTANTIATE_TILES(TileShape8)

}  // namespace l0sign::cuda
