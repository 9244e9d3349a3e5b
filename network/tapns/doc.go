// Package tapns makes a network namespace whose interfaces belong to a machine.
//
// What clients set up for a container (CNI plugins, called by OCI hooks) happens in
// a network namespace of the host. The VMM runs in it. Each interface that the
// plugins put there is then joined to a tap device of the VMM's: traffic control
// redirects all that comes in on the one to go out on the other. The addresses
// and routes are the guest's, who has the interface's MAC address too.
//
// It needs the capabilities CAP_SYS_ADMIN and CAP_NET_ADMIN, and Linux.
package tapns
