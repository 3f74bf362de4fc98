// Codecs are shared by host and device code.
#pragma once

#if defined(__CUDACC__)
#define DSV4_HD __host__ __device__
#else
#define DSV4_HD
#endif
