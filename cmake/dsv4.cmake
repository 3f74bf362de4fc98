# One library per folder of src/. A folder's headers are reachable only through its target: each
# target exports an include root that holds nothing but a link to its own folder, so including what
# the folder does not depend on fails to compile.

add_library(dsv4_flags INTERFACE)
target_compile_options(dsv4_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wnon-virtual-dtor
  -Wno-missing-field-initializers
  # Sums must be the same on every compiler: no contraction behind our back.
  -ffp-contract=off
  $<$<BOOL:${DSV4_DEV}>:-Werror>)
if(DSV4_SANITIZE)
  target_compile_options(dsv4_flags INTERFACE -fsanitize=${DSV4_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(dsv4_flags INTERFACE -fsanitize=${DSV4_SANITIZE})
endif()
if(DSV4_FUZZ)
  target_compile_options(dsv4_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# The public headers, include/dsv4/.
add_library(dsv4_public INTERFACE)
target_include_directories(dsv4_public INTERFACE "${PROJECT_SOURCE_DIR}/include")

# dsv4_library(backends/cpu SOURCES a.cc b.cc DEPS ops formats PRIVATE_DEPS hwy::hwy)
# Target name: dsv4_ + folder with '/' as '_'. DEPS are other folders of src/, PRIVATE_DEPS any target.
function(dsv4_library folder)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  string(REPLACE "/" "_" name "${folder}")
  set(target dsv4_${name})
  add_library(${target} STATIC ${ARG_SOURCES})

  set(root "${PROJECT_BINARY_DIR}/include_roots/${name}")
  get_filename_component(parent "${root}/${folder}" DIRECTORY)
  file(MAKE_DIRECTORY "${parent}")
  file(CREATE_LINK "${PROJECT_SOURCE_DIR}/src/${folder}" "${root}/${folder}" SYMBOLIC)
  target_include_directories(${target} PUBLIC "${root}")

  target_link_libraries(${target} PUBLIC dsv4_public PRIVATE dsv4_flags ${ARG_PRIVATE_DEPS})
  foreach(dep IN LISTS ARG_DEPS)
    string(REPLACE "/" "_" dep "${dep}")
    target_link_libraries(${target} PUBLIC dsv4_${dep})
  endforeach()
endfunction()
