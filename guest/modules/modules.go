// Package modules loads the kernel modules that the initramfs carries. The
// image's builder has put them into an order in which they load.
package modules

// Dir is where the initramfs has its modules, named so that their lexical order
// is the order in which they load.
const Dir = "/lib/modules/applevm"

// Binfmt is the directory in Dir of the modules for binfmt_misc, which are loaded only where
// programs of another architecture are to run.
const Binfmt = "binfmt"
