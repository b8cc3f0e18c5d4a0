package worker

// What the tests, which are outside the package because workertest imports it,
// look at inside.
var (
	ServeOn  = serve
	ZeroCopy = zeroCopy
)
