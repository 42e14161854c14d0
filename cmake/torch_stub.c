/* Stands in for libtorch.so at link time; see CMakeLists.txt. */
int l0sign_torch_stub;
