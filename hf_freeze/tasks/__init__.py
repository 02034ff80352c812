"""What is learned: a registry of tasks, each of which turns a dataset and a model's name into what a trainer needs."""

from hf_freeze.tasks.registry import LoadedModel, PreparedData, Task, get_task, register_task, task_names

__all__ = ["LoadedModel", "PreparedData", "Task", "get_task", "register_task", "task_names"]
