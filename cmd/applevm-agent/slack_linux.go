//go:build cgo

package main

/*
#cgo LDFLAGS: -Wl,--wrap=nsexec
#include <sys/prctl.h>

#define SLACK    4000000UL // ns
#define ORDINARY   50000UL // ns: include/linux/init_task.h

// What libcontainer's constructor calls before Go's runtime starts. A process's
// default slack is what its parent had at the fork: those that nsexec forks,
// of which the last becomes the container's, get the ordinary one.
extern void __real_nsexec(void) __attribute__((weak)); // it is in another package
void __wrap_nsexec(void)
{
	prctl(PR_SET_TIMERSLACK, ORDINARY, 0, 0, 0);
	__real_nsexec();
	prctl(PR_SET_TIMERSLACK, SLACK, 0, 0, 0);
}

static void ordinary_slack(void) { prctl(PR_SET_TIMERSLACK, ORDINARY, 0, 0, 0); }
*/
import "C"

// ordinarySlack gives the calling thread the kernel's own timer slack.
//
// All threads of the agent have a larger one: Go's runtime has a thread
// (sysmon) that sleeps 20 µs at a time while there is work, and each wake-up
// costs an interrupt and two context switches. On one emulated processor that was
// a third of all that a container's start executes. The price is that a
// goroutine in a blocking system call may keep the others of its processor
// waiting for as long as the slack. A container must not inherit it.
func ordinarySlack() { C.ordinary_slack() }
