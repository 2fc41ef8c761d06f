/* The safetensors reader against files that are right, and a table of those that are not. */
#include "base/util.h"
#include "cli/safetensors.h"
#include "support/test_main.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A file of 8 bytes of length (the text's if `length` is 0), the text, and `data` bytes. */
static int read_text(const char *text, size_t text_bytes, uint64_t length, uint64_t data,
	struct safetensors *ret_file, struct error *err)
{
	uint64_t said = length ? length : text_bytes;
	int fd = memfd_create("safetensors", MFD_CLOEXEC), rc;
	char path[64];

	assert_true(fd >= 0);
	assert_int_equal(write(fd, &said, sizeof(said)), sizeof(said));
	assert_int_equal(write(fd, text, text_bytes), text_bytes);
	assert_int_equal(ftruncate(fd, (off_t)(sizeof(said) + text_bytes + data)), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	rc = safetensors_open(path, ret_file, err);
	close(fd);
	return rc;
}

static const struct {
	const char *header;
	uint64_t length; /* that the file says; 0: the truth */
	uint64_t data;	 /* bytes behind the header */
	int code;
	const char *says;
} bad[] = {
	{"", 0, 0, -EINVAL, "not valid JSON"},
	{"{}", 3, 0, -EINVAL, "truncated: the header is 3 bytes long"},
	{"{}", 100000001, 0, -E2BIG, "at most 100000000 are allowed"},
	{"{}", UINT64_MAX, 0, -E2BIG, "18446744073709551615"},
	{"{\"a\":", 0, 0, -EINVAL, "not valid JSON"},
	{"[1]", 0, 0, -EINVAL, "not a JSON object"},
	{"{} x", 0, 0, -EINVAL, "not valid JSON"},
	{"{}", 0, 4, -EINVAL, "4 bytes at the end of the file belong to no tensor"},
	{"{\"a\":3}", 0, 0, -EINVAL, "\"a\": its entry is not a JSON object"},
	{"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1, -EINVAL,
		"without a name"},
	{"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1, -EINVAL, "\"a\": no dtype"},
	{"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1, -EINVAL, "no dtype"},
	{"{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1, -EINVAL,
		"\"a\": unknown dtype \"F4\""},
	{"{\"a\":{\"dtype\":\"u8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1, -EINVAL,
		"unknown dtype \"u8\""},
	{"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 0, 1, -EINVAL, "\"a\": no shape"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 0, 1, -EINVAL,
		"\"a\": a dimension that is not a whole number"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 0, 1, -EINVAL,
		"\"a\": a dimension that is not a whole number"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 0, 1,
		-E2BIG, "\"a\": 7 dimensions; at most 6"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,1]}}", 0,
		1, -EINVAL, "more bytes than 64 bits"},
	{"{\"a\":{\"dtype\":\"F64\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0, 0,
		-EINVAL, "more bytes than 64 bits"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[99999999999999999999],\"data_offsets\":[0,0]}}", 0, 0,
		-EINVAL, "not valid JSON: too big integer"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 0, 1, -EINVAL, "\"a\": data_offsets are not"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 0, 1, -EINVAL,
		"\"a\": data_offsets are not"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", 0, 1, -EINVAL,
		"\"a\": data_offsets are not"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 0, 1, -EINVAL,
		"\"a\": data_offsets [1, 0] end before they begin"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 0, 1, -EINVAL,
		"\"a\": data_offsets [0, 2] lie outside the file"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9223372036854775806,"
	 "9223372036854775807]}}",
		0, 1, -EINVAL, "lie outside the file"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,2]}}", 0, 2, -EINVAL,
		"\"a\": data_offsets give it 2 bytes, dtype and shape make 4"},
	{"{\"a\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[0,4]}}", 0, 4, -EINVAL,
		"\"a\": data_offsets give it 4 bytes, dtype and shape make 0"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
	 "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
		0, 3, -EINVAL, "\"b\" overlaps \"a\""},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
	 "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
		0, 2, -EINVAL, "overlaps"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
	 "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]}}",
		0, 3, -EINVAL, "\"b\" overlaps \"a\""},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
	 "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[3,4]}}",
		0, 4, -EINVAL, "2 bytes before tensor \"b\" belong to no tensor"},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 0, 2, -EINVAL,
		"1 bytes before tensor \"a\""},
	{"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
	 "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
		0, 1, -EINVAL, "duplicate object key"},
	{"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1,
		-EINVAL, "duplicate object key"},
	{"{\"__metadata__\":1}", 0, 0, -EINVAL, "__metadata__ is not a JSON object"},
	{"{\"__metadata__\":{\"k\":1}}", 0, 0, -EINVAL, "__metadata__ \"k\" is not a string"},
	{"{\"\\u001b[2J\":1}", 0, 0, -EINVAL, "tensor \"?[2J\""},
};

static void refuses_what_breaks_the_format(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct safetensors file = {.fd = -1};
		struct error err = {0};
		int rc = read_text(bad[i].header, strlen(bad[i].header), bad[i].length, bad[i].data,
			&file, &err);

		if (rc != bad[i].code || !strstr(err.text, bad[i].says) ||
			strncmp(err.text, "/proc/self/fd/", 14) != 0) {
			fail_msg("case %zu, %s: %d, %s", i, bad[i].header, rc, err.text);
		}
		assert_null(file.tensors);
	}
}

static void refuses_deep_json(void **state)
{
	size_t bytes = 1u << 20;
	char *text = malloc(bytes);
	struct safetensors file;
	struct error err = {0};

	(void)state;
	assert_non_null(text);
	memset(text, '[', bytes);
	assert_int_equal(read_text(text, bytes, 0, 0, &file, &err), -EINVAL);
	assert_non_null(strstr(err.text, "depth"));
	free(text);
}

static void refuses_other_files(void **state)
{
	struct safetensors file;
	struct error err = {0};
	char longer[400];

	(void)state;
	assert_int_equal(safetensors_open("/nonexistent.safetensors", &file, &err), -ENOENT);
	assert_string_equal(
		err.text, "/nonexistent.safetensors: cannot be opened: No such file or directory");
	assert_int_equal(safetensors_open("/dev/null", &file, &err), -EINVAL);
	assert_non_null(strstr(err.text, "not a regular file"));
	assert_int_equal(safetensors_open("/proc/self/maps", &file, &err), -EINVAL);
	/* A long path is cut at its front, so that file name and reason are there. */
	memset(longer, 'd', sizeof(longer));
	strcpy(longer + sizeof(longer) - sizeof("/x.safetensors"), "/x.safetensors");
	assert_true(safetensors_open(longer, &file, &err) < 0);
	assert_non_null(strstr(err.text, "d/x.safetensors: cannot be opened: "));
}

static void truncated_at_every_length(void **state)
{
	static const char header[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],"
				     "\"data_offsets\":[0,3]}}";
	uint64_t length = sizeof(header) - 1;
	char whole[sizeof(length) + sizeof(header) - 1 + 3] = {0};
	struct safetensors file;
	struct error err = {0};

	(void)state;
	memcpy(whole, &length, sizeof(length));
	memcpy(whole + sizeof(length), header, length);
	for (size_t n = 0; n <= sizeof(whole); n++) {
		int fd = memfd_create("truncated", MFD_CLOEXEC);
		char path[64];

		assert_true(fd >= 0);
		assert_int_equal(write(fd, whole, n), n);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (n < sizeof(whole)) {
			assert_int_equal(safetensors_open(path, &file, &err), -EINVAL);
		} else {
			assert_int_equal(safetensors_open(path, &file, &err), 0);
			safetensors_close(&file);
		}
		close(fd);
	}
}

static void reads_a_good_file(void **state)
{
	static const char header[] =
		"{\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
		"\"__metadata__\":{\"format\":\"pt\"},"
		"\"empty\":{\"dtype\":\"F32\",\"shape\":[4,0],\"data_offsets\":[8,8]},"
		"\"a\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]}}   ";
	struct safetensors file;
	struct error err = {0};

	(void)state;
	assert_int_equal(read_text(header, strlen(header), 0, 20, &file, &err), 0);
	assert_int_equal(file.ntensors, 3);
	assert_int_equal(file.data_offset, 8 + strlen(header));
	assert_int_equal(file.data_bytes, 20);
	assert_string_equal(file.tensors[0].tensor.name, "a");
	assert_int_equal(file.tensors[0].tensor.ndim, 0);
	assert_int_equal(file.tensors[0].bytes, 8);
	assert_string_equal(file.tensors[1].tensor.name, "empty");
	assert_int_equal(file.tensors[1].bytes, 0);
	assert_string_equal(file.tensors[2].tensor.name, "b");
	assert_int_equal(file.tensors[2].tensor.dtype, STREW_BF16);
	assert_int_equal(file.tensors[2].tensor.ndim, 2);
	assert_int_equal(file.tensors[2].tensor.shape[0], 2);
	assert_int_equal(file.tensors[2].tensor.shape[1], 3);
	assert_int_equal(file.tensors[2].offset, 8);
	safetensors_close(&file);
	assert_int_equal(read_text("{}", 2, 0, 0, &file, &err), 0);
	assert_int_equal(file.ntensors, 0);
	safetensors_close(&file);
}

static void knows_every_dtype(void **state)
{
	static const struct {
		const char *name;
		unsigned bytes;
	} dtypes[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
		{"I8", 1}, {"U8", 1}, {"I16", 2}, {"U16", 2}, {"I32", 4}, {"U32", 4}, {"I64", 8},
		{"U64", 8}, {"F64", 8}, {"BOOL", 1}};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(dtypes); i++) {
		struct safetensors file;
		struct error err = {0};
		char text[128];

		snprintf(text, sizeof(text),
			"{\"a\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%u]}}",
			dtypes[i].name, 3 * dtypes[i].bytes);
		assert_int_equal(
			read_text(text, strlen(text), 0, 3 * dtypes[i].bytes, &file, &err), 0);
		safetensors_close(&file);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refuses_what_breaks_the_format),
		cmocka_unit_test(refuses_deep_json),
		cmocka_unit_test(refuses_other_files),
		cmocka_unit_test(truncated_at_every_length),
		cmocka_unit_test(reads_a_good_file),
		cmocka_unit_test(knows_every_dtype),
	};

	return TEST_RUN(tests);
}
