/*
 * The frame of a unit-test program: cmocka, a count of open descriptors before
 * and after (a leak fails the program), and a seed for random data that is
 * printed and can be set with $STREW_SEED.
 */
#ifndef SUPPORT_TEST_MAIN_H
#define SUPPORT_TEST_MAIN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Runs the group, returns its failures, and fails if descriptors leaked. */
#define TEST_RUN(tests) test_finish(cmocka_run_group_tests(tests, NULL, NULL), test_fds_at_start)

extern int test_fds_at_start;
int test_count_fds(void);
int test_finish(int failures, int fds_before);

/* Deterministic from the seed; test_seed() prints it once. */
uint64_t test_seed(void);
uint64_t test_random(void);		    /* 64 random bits */
uint64_t test_random_below(uint64_t limit); /* [0, limit) */
void test_random_fill(void *buf, size_t len_bytes);

#endif
