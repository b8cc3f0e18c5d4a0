package worker

// Insides for the tests, which are outside the package because workertest imports it.
var (
	ServeOn  = serve
	ZeroCopy = zeroCopy
)
