// Hello is a program for a container of another architecture.
package main

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "nested" {
		if err := nested(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("a machine in the machine")
		os.Exit(3)
	}
	fmt.Println("hello from", runtime.GOARCH)
	os.Exit(3)
}

// nested makes a machine with one processor.
func nested() error {
	const createVM, createVCPU = 0xae01, 0xae41 // KVM_CREATE_VM, KVM_CREATE_VCPU of linux/kvm.h
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	vm, err := ioctl(int(kvm.Fd()), createVM)
	if err != nil {
		return fmt.Errorf("make a machine: %w", err)
	}
	if _, err := ioctl(vm, createVCPU); err != nil {
		return fmt.Errorf("make its processor: %w", err)
	}
	return nil
}

func ioctl(fd int, request uint) (int, error) { return unix.IoctlRetInt(fd, request) }
