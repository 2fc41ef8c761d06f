#include "broker/one.h"

struct broker one_broker;

int one_start(void **state)
{
	(void)state;
	broker_start(&one_broker, NULL);
	return 0;
}

int one_finish(void **state)
{
	(void)state;
	broker_finish(&one_broker);
	return 0;
}

int one_check(void **state)
{
	(void)state;
	broker_check(&one_broker);
	return 0;
}
