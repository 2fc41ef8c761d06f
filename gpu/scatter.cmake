# Makes or checks the kernels' PTX; run by cmake -P.
#   -DNVCC=nvcc -DSOURCE=scatter.cu -DFOLDER=gpu -DWORK=folder [-DCHECK=1]
# A text for GPUs of compute capability 9.0 and later, which have bulk copies, and one for all
# since 8.0. Comments are dropped, and the PTX version is lowered to the first that knows what the
# text has: drivers refuse text that is newer than they are.
# The first line keeps the compiler's release, because another one gives other text.
execute_process(COMMAND ${NVCC} --version OUTPUT_VARIABLE release RESULT_VARIABLE failed)
if(failed OR NOT release MATCHES "release [0-9.]+, (V[0-9.]+)")
	message(FATAL_ERROR "nvcc does not say its release")
endif()
set(release ${CMAKE_MATCH_1})

function(make_text arch version name)
	execute_process(COMMAND ${NVCC} -ptx -arch=compute_${arch} ${SOURCE} -o ${WORK}/raw.ptx
		RESULT_VARIABLE failed)
	if(failed)
		message(FATAL_ERROR "nvcc failed")
	endif()
	file(READ ${WORK}/raw.ptx text)
	string(REGEX REPLACE "//[^\n]*" "" text "${text}")
	string(REGEX REPLACE "[ \t]+\n" "\n" text "${text}")
	string(REGEX REPLACE "\n\n+" "\n" text "${text}")
	string(REGEX REPLACE "\\.version [0-9.]+" ".version ${version}" text "${text}")
	string(STRIP "${text}" text)
	set(text "// strew_scatter from scatter.cu, compute_${arch}, by nvcc ${release}\n${text}\n")
	if(NOT CHECK)
		file(WRITE ${FOLDER}/${name} "${text}")
		return()
	endif()
	file(READ ${FOLDER}/${name} kept)
	if(kept STREQUAL text)
		message("${name} is what scatter.cu gives")
	elseif(kept MATCHES "^// [^\n]* nvcc ${release}\n")
		file(WRITE ${WORK}/${name} "${text}")
		message(FATAL_ERROR "${name} is not what scatter.cu gives; build the target scatter_ptx")
	else()
		message("SKIP: ${name} was made by another release of nvcc than ${release}")
	endif()
endfunction()

file(MAKE_DIRECTORY ${WORK})
make_text(80 7.0 scatter.ptx)
make_text(90 8.0 scatter_90.ptx)
