# LibTorch out of the pip wheel `torch`, as imported targets:
#   TorchWheel::torch   libtorch with its headers
#   TorchWheel::python  libtorch_python with its headers, pybind11's among them
#   TorchWheel::openmp  the wheel's own OpenMP runtime, so that a process has one thread pool
# and TorchWheel_LIBRARY_DIR, TorchWheel_PYTHON. find_package(Torch) is not used: it drags in
# checks of CUDA, MKL and kineto.
if(LENSCPP_PYTHON)
  set(TorchWheel_PYTHON ${LENSCPP_PYTHON})
elseif(Python_EXECUTABLE)
  set(TorchWheel_PYTHON ${Python_EXECUTABLE})
elseif(EXISTS ${CMAKE_SOURCE_DIR}/.venv/bin/python)
  set(TorchWheel_PYTHON ${CMAKE_SOURCE_DIR}/.venv/bin/python)
else()
  find_package(Python COMPONENTS Interpreter QUIET)
  set(TorchWheel_PYTHON ${Python_EXECUTABLE})
endif()

# First isolated (-I), so that a build environment's overlay does not hide the torch installed into;
# then as it is. Found without importing: torch itself takes a second to import.
set(query [=[
import importlib.metadata, importlib.util
spec = importlib.util.find_spec("torch")
print(spec.submodule_search_locations[0], importlib.metadata.version("torch"), sep=";")
]=])
set(failed 1)
if(TorchWheel_PYTHON)
  foreach(flag -I -s)
    if(failed)
      execute_process(COMMAND ${TorchWheel_PYTHON} ${flag} -c "${query}" OUTPUT_VARIABLE answer
                      OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    endif()
  endforeach()
endif()
if(failed)
  message(FATAL_ERROR "[torch] the interpreter '${TorchWheel_PYTHON}' has no torch: "
    "`make build` prepares one, or name another by -DLENSCPP_PYTHON=..., "
    "or install torch==${TorchWheel_FIND_VERSION} into this one.")
endif()
list(GET answer 0 TorchWheel_ROOT)
list(GET answer 1 TorchWheel_VERSION)
string(REGEX REPLACE "\\+.*" "" TorchWheel_VERSION_RELEASE "${TorchWheel_VERSION}")
if(TorchWheel_FIND_VERSION_EXACT AND NOT TorchWheel_VERSION_RELEASE VERSION_EQUAL TorchWheel_FIND_VERSION)
  message(FATAL_ERROR "[torch] found torch ${TorchWheel_VERSION} in '${TorchWheel_ROOT}', "
    "but lenscpp is built against ${TorchWheel_FIND_VERSION}: install torch==${TorchWheel_FIND_VERSION}.")
endif()

set(TorchWheel_LIBRARY_DIR ${TorchWheel_ROOT}/lib)
set(suffix ${CMAKE_SHARED_LIBRARY_SUFFIX})
file(GLOB TorchWheel_OPENMP ${TorchWheel_LIBRARY_DIR}/libgomp*.so* ${TorchWheel_LIBRARY_DIR}/libomp*${suffix})
if(NOT TorchWheel_OPENMP)
  file(GLOB TorchWheel_OPENMP ${TorchWheel_ROOT}/../torch.libs/libgomp*.so*)
endif()
if(TorchWheel_OPENMP)
  list(GET TorchWheel_OPENMP 0 TorchWheel_OPENMP)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TorchWheel
  REQUIRED_VARS TorchWheel_ROOT TorchWheel_LIBRARY_DIR TorchWheel_OPENMP VERSION_VAR TorchWheel_VERSION_RELEASE)

if(NOT TARGET TorchWheel::torch)
  add_library(TorchWheel::openmp SHARED IMPORTED)
  set_target_properties(TorchWheel::openmp PROPERTIES IMPORTED_LOCATION ${TorchWheel_OPENMP})
  foreach(name c10 torch_cpu torch torch_python)
    add_library(TorchWheel::lib${name} SHARED IMPORTED)
    set_target_properties(TorchWheel::lib${name} PROPERTIES
      IMPORTED_LOCATION ${TorchWheel_LIBRARY_DIR}/lib${name}${suffix})
  endforeach()

  add_library(TorchWheel::torch INTERFACE IMPORTED)
  target_include_directories(TorchWheel::torch SYSTEM INTERFACE
    ${TorchWheel_ROOT}/include ${TorchWheel_ROOT}/include/torch/csrc/api/include)
  target_link_libraries(TorchWheel::torch INTERFACE
    TorchWheel::libtorch TorchWheel::libtorch_cpu TorchWheel::libc10)
  # libtorch names no symbol of its own but loads the accelerator's libraries: keep it.
  if(NOT APPLE)
    target_link_options(TorchWheel::torch INTERFACE LINKER:--no-as-needed)
  endif()

  add_library(TorchWheel::python INTERFACE IMPORTED)
  target_link_libraries(TorchWheel::python INTERFACE TorchWheel::torch TorchWheel::libtorch_python)
endif()
