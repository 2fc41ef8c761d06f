// The public headers in a C++ program: they compile, and their functions have C linkage.
#include <strew/strew.h>

extern "C" int header_test(strew_agent *agent, strew_trainer *trainer);

int header_test(strew_agent *agent, strew_trainer *trainer)
{
	strew_agent_options options = strew_agent_options();
	strew_report report = strew_report();

	options.gate = STREW_GATE_HELD;
	strew_report_finish(&report);
	return strew_agent_fd(agent) + strew_trainer_fd(trainer) + static_cast<int>(options.gate);
}
