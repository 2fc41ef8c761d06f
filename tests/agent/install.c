/* The smallest program on libstrew, built as a user builds one: with what pkg-config says. */
#include <stdio.h>
#include <strew/strew.h>

int main(void)
{
	struct strew_agent_options options = {.socket = "/nonexistent/broker.sock", .model = "m"};
	struct strew_agent *agent;

	if (strew_agent_open(&options, &agent) >= 0) {
		fputs("a broker where none can be\n", stderr);
		return 1;
	}
	puts(strew_error());
	return 0;
}
