// Package foreign is the part that links to workers which know nothing of handfast have in common
// (packages bindswap and acceptinject): the program is started under a seccomp filter, and its calls
// are answered.
//
//  1. Open prepares the launch. The supervisor starts Link.Launch's command, which installs the
//     filter and then becomes the worker's program (package launch).
//  2. Hello waits until that is done, or says what this machine cannot do. From then on the
//     link answers Link.Notifs in a goroutine (Go).
//  3. address.go says which of the balancer's addresses a call of bind is for.
//     ReplaceSocket gives the caller another socket for its own.
//  4. A worker that cannot be served has left (Leave): its process cannot be looked into, say, or it
//     binds an address that takes fewer clients than the balancer's (Refuse).
//  5. upgrade.go keeps a link when the master's program is replaced.
//  6. probe.go starts a child that tries, in place of a worker, whether this machine can do that, and
//     says what is missing.
package foreign
