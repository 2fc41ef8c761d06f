/* strew-bench shapes: a model's tensors and one rank's parameters, for people and programs. */
#include "bench/bench.h"
#include "bench/shapes.h"
#include <jansson.h>

static const char help[] =
	"Usage: strew-bench shapes --model CONFIG.json [options]\n"
	"\n"
	"The tensors of a model's checkpoint, and the parameters of a tensor-parallel rank with "
	"the\n"
	"boxes of tensors that fill them, as the other subcommands use them.\n"
	"\n"
	"  --model CONFIG     a config.json as published (see bench/models/)\n"
	"  --layers N         the first N layers (default: all)\n"
	"  --tp N             tensor-parallel ranks (default 2)\n"
	"  --json             everything, one object a rank: tensors once, then ranks[] with\n"
	"                     parameters[] and pieces[] (tensor and parameter are indices; start "
	"and\n"
	"                     extent in the tensor; offset and row_stride in elements of the "
	"parameter)\n"
	"  --help\n";

static json_t *list(const uint64_t *v, int n)
{
	json_t *array = json_array();

	for (int i = 0; i < n; i++) {
		json_array_append_new(array, json_integer((json_int_t)v[i]));
	}
	return array;
}

static json_t *tensors_json(const struct shape_tensor *v, size_t n)
{
	json_t *array = json_array();

	for (size_t i = 0; i < n; i++) {
		json_array_append_new(array, json_pack("{s:s, s:s, s:o}", "name", v[i].name,
						     "dtype", strew_dtype_name(v[i].dtype), "shape",
						     list(v[i].shape, v[i].ndim)));
	}
	return array;
}

static json_t *rank_json(const struct shapes *shapes)
{
	json_t *pieces = json_array();

	for (size_t i = 0; i < shapes->npieces; i++) {
		const struct shape_piece *piece = &shapes->pieces[i];
		int ndim = shapes->tensors[piece->tensor].ndim;

		json_array_append_new(pieces,
			json_pack("{s:i, s:i, s:o, s:o, s:I, s:I}", "tensor", (int)piece->tensor,
				"parameter", (int)piece->parameter, "start",
				list(piece->start, ndim), "extent", list(piece->extent, ndim),
				"offset", (json_int_t)piece->offset, "row_stride",
				(json_int_t)piece->row_stride));
	}
	return json_pack("{s:o, s:o}", "parameters",
		tensors_json(shapes->parameters, shapes->nparameters), "pieces", pieces);
}

int cmd_shapes(int argc, char **argv)
{
	struct bench_options options;
	const char *model = NULL;
	uint64_t layers = 0, tp = 2;
	const struct bench_option own[] = {{.name = "model", .text = &model},
		{.name = "layers", .number = &layers}, {.name = "tp", .number = &tp}, {0}};
	json_t *all, *ranks;
	char bytes[32], each[32];

	bench_parse(argc, argv, help, &options, own);
	if (!model || tp > 64) {
		fputs("strew-bench shapes: --model CONFIG.json, and at most 64 ranks, are wanted; "
		      "see strew-bench shapes --help\n",
			stderr);
		return EXIT_USAGE;
	}
	all = json_object();
	ranks = json_array();
	for (uint32_t rank = 0; rank < tp; rank++) {
		struct shapes shapes;

		shapes_load(model, layers, (uint32_t)tp, rank, &shapes);
		if (rank == 0 && options.json) {
			json_object_set_new(
				all, "tensors", tensors_json(shapes.tensors, shapes.ntensors));
		}
		if (options.json) {
			json_array_append_new(ranks, rank_json(&shapes));
		} else if (rank == 0) {
			printf("%s: %llu of %llu layers, %zu tensors, %s; each of %llu ranks: %zu "
			       "parameters, %zu pieces, %s\n",
				model, (unsigned long long)shapes.layers,
				(unsigned long long)shapes.all_layers, shapes.ntensors,
				format_bytes(bytes, sizeof(bytes), shapes.bytes),
				(unsigned long long)tp, shapes.nparameters, shapes.npieces,
				format_bytes(each, sizeof(each), shapes.worker_bytes));
		}
		shapes_finish(&shapes);
	}
	if (options.json) {
		json_object_set(all, "ranks", ranks);
		json_dumpf(all, stdout, JSON_COMPACT);
		putchar('\n');
	}
	json_decref(ranks);
	json_decref(all);
	return EXIT_OK;
}
