# Cross-compiling for 64-bit ARM with Debian's g++-aarch64-linux-gnu. The libraries for that machine are where
# `dpkg --add-architecture arm64` and apt put them (libhwy-dev:arm64 libpcre2-dev:arm64 libedit-dev:arm64), or
# unpacked under $DSV4_AARCH64_ROOT where they shall not be installed beside this machine's own.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
if(DEFINED ENV{DSV4_AARCH64_ROOT})
  set(CMAKE_FIND_ROOT_PATH "$ENV{DSV4_AARCH64_ROOT}")
  set(ENV{PKG_CONFIG_SYSROOT_DIR} "$ENV{DSV4_AARCH64_ROOT}")
  # Libraries that these libraries need.
  set(root "$ENV{DSV4_AARCH64_ROOT}")
  set(CMAKE_EXE_LINKER_FLAGS_INIT
      "-Wl,-rpath-link,${root}/lib/aarch64-linux-gnu -Wl,-rpath-link,${root}/usr/lib/aarch64-linux-gnu")
endif()
set(ENV{PKG_CONFIG_LIBDIR} "$ENV{DSV4_AARCH64_ROOT}/usr/lib/aarch64-linux-gnu/pkgconfig")
