#include "cuda/tiles_instance.h"

namespace l0sign::cuda {

INSTANTIATE_TILES(TileShape16x32)

}  // namespace l0sign::cuda
