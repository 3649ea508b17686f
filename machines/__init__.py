"""The laboratory of machines: three Debian systems that lose power, links and storage, judged by the simulator."""
