module ringspan/bench/peers/go

go 1.19
