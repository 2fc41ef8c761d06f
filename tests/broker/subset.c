#include "broker/subset.h"
#include <string.h>

/* The names of those rows whose bits are set. */
size_t names_of(const struct rows *rows, size_t n, unsigned bits, const char **ret_names)
{
	size_t k = 0;

	for (size_t i = 0; i < n; i++) {
		if (bits >> i & 1) {
			ret_names[k++] = rows[i].tensor;
		}
	}
	return k;
}

uint32_t name_subset(struct trainer *trainer, unsigned bits)
{
	const char *names[PEER_ROWS];
	size_t n = names_of(trainer->rows, trainer->nrows, bits, names);
	uint32_t subset = 0;
	int rc = strew_trainer_subset(trainer->trainer, names, n, &subset);

	if (rc) {
		print_error("subset 0x%x: %s\n", bits, strew_error());
	}
	assert_int_equal(rc, 0);
	return subset;
}

/* The version's values in the subset's rows; what is not published is no version's. */
void write_subset(struct trainer *trainer, uint64_t number, unsigned bits)
{
	uint32_t *at = trainer->memory;

	trainer_write(trainer, number);
	for (size_t i = 0; i < trainer->nrows; i++) {
		size_t n = trainer->rows[i].n * trainer->rows[i].cols;

		if (!(bits >> i & 1)) {
			memset(at, 0x3c, n * sizeof(*at));
		}
		at += n + trainer->rows[i].cols;
	}
}

void publish_subset(struct trainer *trainer, uint32_t subset, unsigned bits, uint64_t base,
	uint64_t number, enum strew_outcome outcome, const char *word,
	struct strew_report *ret_report)
{
	write_subset(trainer, number, bits);
	assert_int_equal(strew_trainer_publish_subset(
				 trainer->trainer, subset, base, number, NULL, 0, PATIENCE_MS),
		0);
	trainer_reports(trainer, outcome, word, ret_report);
	assert_int_equal(ret_report->version, number);
}
