# One library per folder of src/. A folder's headers are reachable only through its target: each
# target exports an include root that holds nothing but a link to its own folder, so including what
# the folder does not depend on fails to compile.

add_library(dsv4_flags INTERFACE)
set(warnings -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wnon-virtual-dtor
    -Wno-missing-field-initializers)
if(DSV4_DEV)
  list(APPEND warnings -Werror)
endif()
# Sums must be the same on every compiler: no contraction behind our back.
target_compile_options(dsv4_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${warnings};-ffp-contract=off>)
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

# header_self_containment: every header compiles alone, with no more than its own folder's
# dependencies. Not part of a normal build; the test `lint_headers` builds it.
add_custom_target(header_self_containment)

# dsv4_header_check(name TARGET HEADERS...): HEADERS as they are included, each in a file of its own.
function(dsv4_header_check name target)
  set(sources)
  foreach(header IN LISTS ARGN)
    string(MAKE_C_IDENTIFIER "${header}" id)
    set(source "${PROJECT_BINARY_DIR}/headers/${name}/${id}.cc")
    # Twice: the guard works too.
    set(text "#include \"${header}\"\n#include \"${header}\"\n")
    set(found "")
    if(EXISTS "${source}")
      file(READ "${source}" found)
    endif()
    if(NOT found STREQUAL text)
      file(WRITE "${source}" "${text}")
    endif()
    list(APPEND sources "${source}")
  endforeach()
  if(NOT sources)
    return()
  endif()
  add_library(headers_${name} OBJECT EXCLUDE_FROM_ALL ${sources})
  target_link_libraries(headers_${name} PRIVATE ${target} dsv4_flags)
  target_compile_options(headers_${name} PRIVATE -O0 -g0)
  add_dependencies(header_self_containment headers_${name})
endfunction()

file(GLOB headers CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/include"
     "${PROJECT_SOURCE_DIR}/include/dsv4/*.h")
dsv4_header_check(public dsv4_public ${headers})

# Several files of a library as one translation unit (CMAKE_UNITY_BUILD of the release preset): half the
# build time. Names in unnamed namespaces then meet those of the folder's other files.
#
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

  file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/src"
       "${PROJECT_SOURCE_DIR}/src/${folder}/*.h")
  list(FILTER headers EXCLUDE REGEX "-inl\\.h$")  # compiled once per instruction set, by their .cc
  dsv4_header_check(${name} ${target} ${headers})
endfunction()
