// Package optionsv1 has the typed options of the runtime io.containerd.applevm.v1,
// for Go clients of containerd:
//
//	client.NewContainer(ctx, id, …, containerd.WithRuntime("io.containerd.applevm.v1",
//		&optionsv1.Options{Machine: &optionsv1.Machine{Cpus: 2}}))
//
// Package options applies them.
package optionsv1
