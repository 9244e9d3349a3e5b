// Package wrong uses the framework's binding in ways that no Mac would compile.
package wrong

import "github.com/Code-Hex/vz/v3"

// Wrong has three errors.
func Wrong() error {
	loader, err := vz.NewLinuxBootLoader(42)
	if err != nil {
		return err
	}
	var vm *vz.VirtualMachine = vz.NewVirtualMachine(loader)
	return vm.Hibernate()
}
