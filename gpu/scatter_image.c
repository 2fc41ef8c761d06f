/*
 * The kernel's PTX and, where the build had nvcc, its machine code, as data. Assembler
 * instead of a generated array: nothing but the compiler is needed to embed a file.
 */
#include "gpu/cuda_backend.h"

#ifdef SCATTER_FATBIN
#define FATBIN ".incbin \"" SCATTER_FATBIN "\"\n"
#else
#define FATBIN ""
#endif

__asm__(".pushsection .rodata\n"
	".hidden scatter_ptx\n"
	".globl scatter_ptx\n"
	".balign 64\n"
	"scatter_ptx:\n"
	".incbin \"" SCATTER_PTX "\"\n"
	".byte 0\n"
	".hidden scatter_90_ptx\n"
	".globl scatter_90_ptx\n"
	".balign 64\n"
	"scatter_90_ptx:\n"
	".incbin \"" SCATTER_90_PTX "\"\n"
	".byte 0\n"
	".hidden scatter_fatbin\n"
	".globl scatter_fatbin\n"
	".balign 64\n"
	"scatter_fatbin:\n" FATBIN ".Lscatter_fatbin_end:\n"
	".hidden scatter_fatbin_bytes\n"
	".globl scatter_fatbin_bytes\n"
	".balign 8\n"
	"scatter_fatbin_bytes:\n"
	".quad .Lscatter_fatbin_end - scatter_fatbin\n"
	".popsection\n");
