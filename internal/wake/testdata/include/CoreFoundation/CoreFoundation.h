/* What of macOS's headers the package uses, for a test without them: the run loop is one
   night. */
#ifndef FAKE_CF
#define FAKE_CF
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>
typedef void *CFRunLoopRef, *CFRunLoopSourceRef, *CFStringRef;
typedef unsigned int io_connect_t, io_service_t, io_object_t;
typedef void *IONotificationPortRef;
typedef void (*IOServiceInterestCallback)(void *, io_service_t, uint32_t, void *);
#define MACH_PORT_NULL 0
#define kCFRunLoopCommonModes ((CFStringRef)"common")
#define kIOMessageCanSystemSleep 0xe0000270u
#define kIOMessageSystemWillSleep 0xe0000280u
#define kIOMessageSystemWillPowerOn 0xe0000320u
#define kIOMessageSystemHasPoweredOn 0xe0000300u
static IOServiceInterestCallback fake_callback;
static int fake_source;
static inline io_connect_t IORegisterForSystemPower(void *ref, IONotificationPortRef *port, IOServiceInterestCallback f, io_object_t *notifier) {
	fake_callback = f;
	*port = &fake_source;
	*notifier = 1;
	return 7;
}
static inline int IOAllowPowerChange(io_connect_t c, long id) {
	fprintf(stderr, "allowed %u %ld\n", c, id);
	return 0;
}
static inline CFRunLoopSourceRef IONotificationPortGetRunLoopSource(IONotificationPortRef port) { return port; }
static inline CFRunLoopRef CFRunLoopGetCurrent(void) { return &fake_callback; }
static inline void CFRunLoopAddSource(CFRunLoopRef l, CFRunLoopSourceRef s, CFStringRef m) {
	if (l != (CFRunLoopRef)&fake_callback || s != (CFRunLoopSourceRef)&fake_source || m != kCFRunLoopCommonModes) fprintf(stderr, "wrong source\n");
}
static inline void CFRunLoopRun(void) {
	usleep(200000);
	fake_callback(NULL, 0, kIOMessageCanSystemSleep, (void *)11);
	fake_callback(NULL, 0, kIOMessageSystemWillSleep, (void *)12);
	fake_callback(NULL, 0, kIOMessageSystemWillPowerOn, NULL);
	fake_callback(NULL, 0, kIOMessageSystemHasPoweredOn, NULL);
	pause();
}
#endif
