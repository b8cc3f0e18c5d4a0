// A module of its own, so that handfast does not depend on what it is compared with.
module github.com/handfast/handfast/cmd/bench/tcpproxy

go 1.26.0

require github.com/inetaf/tcpproxy v0.0.0-20260515195445-c159a6051109
