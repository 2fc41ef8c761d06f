# Makes or checks the kernel's PTX; run by cmake -P.
#   -DNVCC=nvcc -DSOURCE=scatter.cu -DPTX=scatter.ptx -DWORK=folder [-DCHECK=1]
# Comments are dropped, and the PTX version is lowered to the first that knows compute_80:
# the code uses nothing newer, and drivers refuse text that is newer than they are.
# The first line keeps the compiler's release, because another one gives other text.
execute_process(COMMAND ${NVCC} --version OUTPUT_VARIABLE release RESULT_VARIABLE failed)
if(failed OR NOT release MATCHES "release [0-9.]+, (V[0-9.]+)")
	message(FATAL_ERROR "nvcc does not say its release")
endif()
set(release ${CMAKE_MATCH_1})

file(MAKE_DIRECTORY ${WORK})
execute_process(COMMAND ${NVCC} -ptx -arch=compute_80 ${SOURCE} -o ${WORK}/scatter.raw.ptx
	RESULT_VARIABLE failed)
if(failed)
	message(FATAL_ERROR "nvcc failed")
endif()
file(READ ${WORK}/scatter.raw.ptx text)
string(REGEX REPLACE "//[^\n]*" "" text "${text}")
string(REGEX REPLACE "[ \t]+\n" "\n" text "${text}")
string(REGEX REPLACE "\n\n+" "\n" text "${text}")
string(REGEX REPLACE "\\.version [0-9.]+" ".version 7.0" text "${text}")
string(STRIP "${text}" text)
set(text "// strew_scatter from scatter.cu, compute_80, by nvcc ${release}\n${text}\n")

if(NOT CHECK)
	file(WRITE ${PTX} "${text}")
	return()
endif()
file(READ ${PTX} kept)
if(kept STREQUAL text)
	message("scatter.ptx is what scatter.cu gives")
elseif(kept MATCHES "^// [^\n]* nvcc ${release}\n")
	file(WRITE ${WORK}/scatter.ptx "${text}")
	message(FATAL_ERROR "scatter.ptx is not what scatter.cu gives; build the target scatter_ptx")
else()
	message("SKIP: scatter.ptx was made by another release of nvcc than ${release}")
endif()
