//go:build cgo

package main

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// powerOff ends the machine. It does not return.
func powerOff() {
	unix.Sync()
	// A PC without ACPI has no power to switch off: the kernel would halt and
	// the VMM wait for ever. Such a machine is reset instead, which VMMs are told
	// to take as the end.
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	if runtime.GOARCH == "amd64" {
		_ = os.MkdirAll("/sys", 0o755)
		_ = unix.Mount("sysfs", "/sys", "sysfs", 0, "") // if boot did not come that far
		if _, err := os.Stat("/sys/firmware/acpi"); err != nil {
			how = unix.LINUX_REBOOT_CMD_RESTART
		}
	}
	_ = unix.Reboot(how)
	// The exit of PID 1 is a kernel panic, which ends the machine too.
	os.Exit(1)
}
