/* Feeds files (and the files of directories) to a target, once each: the corpus as a test. */
#include "fuzz/fuzz.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define INPUT_MAX (1u << 20)

static unsigned fed;

static int feed_file(const char *path)
{
	FILE *file = fopen(path, "re");
	uint8_t *data;
	size_t n;

	if (!file) {
		perror(path);
		return 1;
	}
	data = malloc(INPUT_MAX);
	n = data ? fread(data, 1, INPUT_MAX, file) : 0;
	fclose(file);
	/* Of its own size, so that a read past its end is seen. */
	data = realloc(data, n ? n : 1);
	if (!data) {
		return 1;
	}
	fprintf(stderr, "%s: %zu bytes\n", path, n);
	LLVMFuzzerTestOneInput(data, n);
	free(data);
	fed++;
	return 0;
}

static int feed_directory(const char *path)
{
	struct dirent **names;
	int n = scandir(path, &names, NULL, alphasort), failed = 0;

	if (n < 0) {
		perror(path);
		return 1;
	}
	for (int i = 0; i < n; i++) {
		char name[4096];

		if (names[i]->d_name[0] != '.') {
			snprintf(name, sizeof(name), "%s/%s", path, names[i]->d_name);
			failed |= feed_file(name);
		}
		free(names[i]);
	}
	free(names);
	return failed;
}

int main(int argc, char **argv)
{
	int failed = 0;

	for (int i = 1; i < argc; i++) {
		struct stat st;

		if (stat(argv[i], &st) == 0 && S_ISDIR(st.st_mode)) {
			failed |= feed_directory(argv[i]);
		} else {
			failed |= feed_file(argv[i]);
		}
	}
	fprintf(stderr, "%u inputs\n", fed);
	return failed || fed == 0;
}
