//go:build cgo && (darwin || macsim)

package wake

/*
#cgo darwin LDFLAGS: -framework IOKit -framework CoreFoundation
#include <stdint.h>
#include <unistd.h>
#include <CoreFoundation/CoreFoundation.h>
#include <IOKit/IOMessage.h>
#include <IOKit/pwr_mgt/IOPMLib.h>

static io_connect_t applevm_power;
static int applevm_out;

// The system waits for who does not allow its sleep, for half a minute.
static void applevm_changed(void *ref, io_service_t service, uint32_t message, void *argument) {
	switch (message) {
	case kIOMessageCanSystemSleep:
	case kIOMessageSystemWillSleep:
		IOAllowPowerChange(applevm_power, (long)argument);
		break;
	case kIOMessageSystemHasPoweredOn:
		if (write(applevm_out, "w", 1) < 0) {
			return; // nobody listens any more
		}
	}
}

// applevm_register has the calling thread's run loop told, and answers 0 if it cannot.
static int applevm_register(int out) {
	IONotificationPortRef port;
	io_object_t notifier;
	applevm_out = out;
	applevm_power = IORegisterForSystemPower(NULL, &port, applevm_changed, &notifier);
	if (applevm_power == MACH_PORT_NULL) {
		return 0;
	}
	CFRunLoopAddSource(CFRunLoopGetCurrent(), IONotificationPortGetRunLoopSource(port), kCFRunLoopCommonModes);
	return 1;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// start has woken called after each sleep. A thread of its own waits for the system, and
// tells by a pipe, so that C need not call Go.
func start(woken func()) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("watch for the host's sleep: %w", err)
	}
	registered := make(chan bool)
	go func() {
		runtime.LockOSThread() // a run loop is its thread's
		ok := C.applevm_register(C.int(w.Fd())) != 0
		registered <- ok
		if ok {
			C.CFRunLoopRun()
		}
		_ = w.Close()
	}()
	if !<-registered {
		_ = r.Close()
		return errors.New("watch for the host's sleep: macOS does not tell (IORegisterForSystemPower)")
	}
	go func() {
		defer func() { _ = r.Close() }()
		b := make([]byte, 1)
		for {
			if _, err := r.Read(b); err != nil {
				return
			}
			woken()
		}
	}()
	return nil
}
