#include "cuda/tiles_instance.h"

namespace l0sign::cuda {

INSTANTIATE_TILES(TileShape64)

}  // namespace l0sign::cuda
